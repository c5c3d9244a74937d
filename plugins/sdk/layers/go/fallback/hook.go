// The hook `fallback`: importing this package makes the plugin have it.
package fallback

import (
	"tidegate"
	"tidegate/types"
)

var decide func(types.Request, []types.Attempt, []types.Candidate) (Step, error)

// Handle says which function decides, in an `init` of the plugin. An error fails the call, and its text is the reason
// in the proxy's log.
func Handle(onFailure func(request types.Request, attempts []types.Attempt, remaining []types.Candidate) (Step, error)) {
	decide = onFailure
}

// Pass is no opinion.
var Pass = MakeStepPass()

// Next tries the next candidate.
var Next = MakeStepNext()

// ServeStale serves the cached copy, however old.
var ServeStale = MakeStepServeStale()

// Stop gives up with what the registry said.
var Stop = MakeStepStop()

// Divert tries this candidate now, then those that remain.
func Divert(candidate types.Candidate) Step {
	return MakeStepDivert(candidate)
}

// Wait waits, then tries the same candidate again. Units: milliseconds.
func Wait(milliseconds uint32) Step {
	return MakeStepWaitMs(milliseconds)
}

// Deny tells the client the message, which names what is denied, and why. For another status than 403:
// `MakeStepDeny`, with a denial of one's own.
func Deny(message string) Step {
	return MakeStepDeny(tidegate.Denial(message))
}

func hookOnFailure(request types.Request, attempts []types.Attempt, remaining []types.Candidate) Step {
	defer tidegate.Tell()
	answer, err := decide(request, attempts, remaining)
	if err != nil {
		panic(err)
	}
	return answer
}
