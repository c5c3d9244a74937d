// The hook `lifecycle`: importing this package makes the plugin have it.
package lifecycle

import (
	"tidegate"
	witTypes "tidegate/wit/types"
)

var accept func() error

// Handle says which function reads the configuration, in an `init` of the plugin. An error refuses it: its text names
// the file, the line and the way out.
func Handle(check func() error) {
	accept = check
}

func hookCheck() witTypes.Result[witTypes.Unit, string] {
	defer tidegate.Tell()
	if err := accept(); err != nil {
		return witTypes.Err[witTypes.Unit, string](err.Error())
	}
	return witTypes.Ok[witTypes.Unit, string](witTypes.Unit{})
}
