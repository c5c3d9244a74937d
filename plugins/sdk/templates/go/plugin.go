// Keeps the tag `latest` out, and warns of other tags that move.
package main

import (
	"slices"
	"strings"

	"tidegate"
	"tidegate/admission"
	"tidegate/call"
	"tidegate/types"
)

// Registries of our own: whoever pushes to them knows what `latest` is.
var own = []string{"registry.example.com", "ghcr.io"}

func init() {
	admission.Handle(admit)
}

func admit(request types.Request) (admission.Verdict, error) {
	tag, named := tidegate.Tag(request)
	if !named {
		return admission.Allow, nil
	}
	name := tidegate.Name(request)
	if tag == "latest" && !slices.Contains(own, request.Registry) {
		return admission.Deny(name + " is denied: `latest` is another image tomorrow, name a version"), nil
	}
	if !strings.ContainsAny(tag, "0123456789") {
		call.Warn(name + " moves: a version or a digest stays what it is")
	}
	return admission.Allow, nil
}

// Go asks for it; nothing calls it.
func main() {}
