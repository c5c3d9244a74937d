// Generated. Importing this package makes the plugin have the hook `lifecycle`.

package lifecycle

import (
	"runtime"
	witRuntime "tidegate/wit/runtime"
	witTypes "tidegate/wit/types"
	"unsafe"
)

var staticPinner = runtime.Pinner{}
var exportReturnArea = uintptr(witRuntime.Allocate(&staticPinner, (16 + 8*4), 4))
var syncExportPinner = runtime.Pinner{}

//go:wasmexport tidegate:policy/lifecycle@0.1.0#check
func wasm_export_tidegate_policy_lifecycle_check() uintptr {

	pinner := &syncExportPinner
	result := hookCheck()

	switch result.Tag() {
	case witTypes.ResultOk:

		*(*int8)(unsafe.Add(unsafe.Pointer(exportReturnArea), 0)) = int8(int32(0))

	case witTypes.ResultErr:
		payload := result.Err()
		*(*int8)(unsafe.Add(unsafe.Pointer(exportReturnArea), 0)) = int8(int32(1))
		utf8 := unsafe.Pointer(unsafe.StringData(payload))
		pinner.Pin(utf8)
		*(*uint32)(unsafe.Add(unsafe.Pointer(exportReturnArea), (2 * 4))) = uint32(uint32(len(payload)))
		*(*uint32)(unsafe.Add(unsafe.Pointer(exportReturnArea), 4)) = uint32(uintptr(uintptr(utf8)))

	default:
		panic("unreachable")
	}
	return exportReturnArea

}

//go:wasmexport cabi_post_tidegate:policy/lifecycle@0.1.0#check
func wasm_export_post_return_tidegate_policy_lifecycle_check(result uintptr) {
	syncExportPinner.Unpin()
}
