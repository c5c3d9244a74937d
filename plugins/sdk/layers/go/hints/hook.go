// The hook `hints`: importing this package makes the plugin have it.
package hints

import "tidegate"

var declare func() Facts

// Handle says which function tells what the answers of `admission` and `routing` depend on, in an `init` of the plugin:
// `Facts_Client | Facts_Lookups`, or 0 where they follow from the request alone. The plugin keeps nothing between calls.
func Handle(dependsOn func() Facts) {
	declare = dependsOn
}

func hookDependsOn() Facts {
	defer tidegate.Tell()
	return declare()
}
