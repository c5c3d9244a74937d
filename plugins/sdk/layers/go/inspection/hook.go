// The hook `inspection`: importing this package makes the plugin have it.
package inspection

import (
	"tidegate"
	"tidegate/types"
)

var decide func(types.Request) (Finding, error)

// Handle says which function decides, in an `init` of the plugin. An error fails the call, and its text is the reason
// in the proxy's log.
func Handle(inspect func(request types.Request) (Finding, error)) {
	decide = inspect
}

// Release lets the manifest be served.
var Release = MakeFindingRelease()

// For denies for now: the client may ask again after so many seconds.
func For(seconds uint32, message string) Finding {
	return MakeFindingHold(Hold{ForSecs: seconds, Message: message})
}

// Deny tells the client the message, which names what is denied, and why. For another status than 403:
// `MakeFindingDeny`, with a denial of one's own.
func Deny(message string) Finding {
	return MakeFindingDeny(tidegate.Denial(message))
}

func hookInspect(request types.Request) Finding {
	defer tidegate.Tell()
	answer, err := decide(request)
	if err != nil {
		panic(err)
	}
	return answer
}
