// The hook `freshness`: importing this package makes the plugin have it.
package freshness

import (
	"tidegate"
	"tidegate/types"
	witTypes "tidegate/wit/types"
)

var decide func(types.Request, witTypes.Option[CachedTag]) (Rule, error)

// Handle says which function decides, in an `init` of the plugin. An error fails the call, and its text is the reason
// in the proxy's log.
func Handle(judge func(request types.Request, cached witTypes.Option[CachedTag]) (Rule, error)) {
	decide = judge
}

// Pass is no opinion.
var Pass = MakeRulePass()

// Serve takes the cached copy, whatever its age.
var Serve = MakeRuleServe()

// Revalidate asks a registry, whatever the copy's age.
var Revalidate = MakeRuleRevalidate()

// Pin lets the tag stand for this digest.
func Pin(digest string) Rule {
	return MakeRulePin(digest)
}

func hookJudge(request types.Request, cached witTypes.Option[CachedTag]) Rule {
	defer tidegate.Tell()
	answer, err := decide(request, cached)
	if err != nil {
		panic(err)
	}
	return answer
}
