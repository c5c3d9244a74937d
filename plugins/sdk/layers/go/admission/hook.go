// The hook `admission`: importing this package makes the plugin have it.
package admission

import (
	"tidegate"
	"tidegate/types"
)

var decide func(types.Request) (Verdict, error)

// Handle says which function decides, in an `init` of the plugin. An error fails the call, and its text is the reason
// in the proxy's log.
func Handle(admit func(request types.Request) (Verdict, error)) {
	decide = admit
}

// Allow lets the request go on.
var Allow = MakeVerdictAllow()

// CachedOnly lets only the cache serve.
var CachedOnly = MakeVerdictCachedOnly()

// Deny tells the client the message, which names what is denied, and why. For another status than 403:
// `MakeVerdictDeny`, with a denial of one's own.
func Deny(message string) Verdict {
	return MakeVerdictDeny(tidegate.Denial(message))
}

func hookAdmit(request types.Request) Verdict {
	defer tidegate.Tell()
	answer, err := decide(request)
	if err != nil {
		panic(err)
	}
	return answer
}
