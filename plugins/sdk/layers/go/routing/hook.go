// The hook `routing`: importing this package makes the plugin have it.
package routing

import (
	"tidegate"
	"tidegate/types"
)

var decide func(types.Request, []types.Candidate) (Routes, error)

// Handle says which function decides, in an `init` of the plugin. An error fails the call, and its text is the reason
// in the proxy's log.
func Handle(route func(request types.Request, candidates []types.Candidate) (Routes, error)) {
	decide = route
}

// Pass leaves the candidates as they are.
var Pass = MakeRoutesPass()

// To gives the candidates to try, in this order; none: only the cache may serve.
func To(candidates ...types.Candidate) Routes {
	return MakeRoutesTo(candidates)
}

// Deny tells the client the message, which names what is denied, and why. For another status than 403:
// `MakeRoutesDeny`, with a denial of one's own.
func Deny(message string) Routes {
	return MakeRoutesDeny(tidegate.Denial(message))
}

func hookRoute(request types.Request, candidates []types.Candidate) Routes {
	defer tidegate.Tell()
	answer, err := decide(request, candidates)
	if err != nil {
		panic(err)
	}
	return answer
}
