// Generated. Importing this package makes the plugin have the hook `hints`.

package hints

import (
	"runtime"
	witRuntime "tidegate/wit/runtime"
)

var staticPinner = runtime.Pinner{}
var exportReturnArea = uintptr(witRuntime.Allocate(&staticPinner, (16 + 8*4), 4))
var syncExportPinner = runtime.Pinner{}

//go:wasmexport tidegate:policy/hints@0.1.0#depends-on
func wasm_export_tidegate_policy_hints_depends_on() int32 {

	result := hookDependsOn()
	return int32(result)

}
