// Package tidegate is what a Tidegate plugin in Go is built on.
//
// A plugin imports the packages of the hooks that it wants, and gives each the function that decides: `admission`,
// `routing`, `fallback`, `inspection`, `freshness` and `lifecycle`. What the host offers are the packages `call`,
// `clock`, `config`, `image`, `log`, `metrics`, `registry` and `state`; `wit/` describes them.
package tidegate

import (
	"fmt"

	"tidegate/log"
	"tidegate/types"
	witTypes "tidegate/wit/types"
)

// Tag is the tag of a request; false when the content is named by its digest, or not at all.
func Tag(request types.Request) (string, bool) {
	if request.Reference.Tag() != types.Reference_Tag {
		return "", false
	}
	return request.Reference.Tag_(), true
}

// Digest is the digest of a request; false when the content is named by a tag, or not at all.
func Digest(request types.Request) (string, bool) {
	if request.Reference.Tag() != types.Reference_Digest {
		return "", false
	}
	return request.Reference.Digest(), true
}

// Name is a request as people write it: `docker.io/library/alpine:3`.
func Name(request types.Request) string {
	name := request.Registry + "/" + request.Repository
	if tag, named := Tag(request); named {
		return name + ":" + tag
	}
	if digest, named := Digest(request); named {
		return name + "@" + digest
	}
	return name
}

// Candidate is a registry by name, with the repository that the client asked for.
func Candidate(registry string) types.Candidate {
	return types.Candidate{
		Registry:     registry,
		Repository:   witTypes.None[string](),
		TimeoutMs:    witTypes.None[uint32](),
		HedgeAfterMs: witTypes.None[uint32](),
	}
}

// Denial is a 403 with the code `DENIED`.
func Denial(message string) types.Denial {
	return types.Denial{Status: 403, Code: "DENIED", Message: message, RetryAfterSecs: witTypes.None[uint32]()}
}

// Tell is deferred around each hook: what it panics with is the reason in the proxy's log.
func Tell() {
	if reason := recover(); reason != nil {
		log.Write(log.Level_Error, fmt.Sprint(reason))
		panic(reason)
	}
}
