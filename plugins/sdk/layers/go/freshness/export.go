// Generated. Importing this package makes the plugin have the hook `freshness`.

package freshness

import (
	"runtime"
	"tidegate/types"
	witRuntime "tidegate/wit/runtime"
	witTypes "tidegate/wit/types"
	"unsafe"
)

var staticPinner = runtime.Pinner{}
var exportReturnArea = uintptr(witRuntime.Allocate(&staticPinner, (16 + 8*4), 4))
var syncExportPinner = runtime.Pinner{}

//go:wasmexport tidegate:policy/freshness@0.1.0#judge
func wasm_export_tidegate_policy_freshness_judge(arg0 int32, arg1 int32, arg2 uintptr, arg3 uint32, arg4 uintptr, arg5 uint32, arg6 int32, arg7 uintptr, arg8 uint32, arg9 int32, arg10 uintptr, arg11 uint32, arg12 int32) uintptr {

	pinner := &syncExportPinner
	value := unsafe.String((*uint8)(unsafe.Pointer(arg2)), arg3)
	value0 := unsafe.String((*uint8)(unsafe.Pointer(arg4)), arg5)
	var variant types.Reference
	switch arg6 {
	case 0:

		variant = types.MakeReferenceNone()

	case 1:
		value1 := unsafe.String((*uint8)(unsafe.Pointer(arg7)), arg8)

		variant = types.MakeReferenceTag(value1)

	case 2:
		value2 := unsafe.String((*uint8)(unsafe.Pointer(arg7)), arg8)

		variant = types.MakeReferenceDigest(value2)

	default:
		panic("unreachable")
	}
	var option witTypes.Option[CachedTag]
	switch arg9 {
	case 0:

		option = witTypes.None[CachedTag]()
	case 1:
		value3 := unsafe.String((*uint8)(unsafe.Pointer(arg10)), arg11)

		option = witTypes.Some[CachedTag](CachedTag{Digest: value3, AgeSecs: uint32(arg12)})
	default:
		panic("unreachable")
	}
	witRuntime.Unpin()
	result := hookJudge(types.Request{Action: uint8(arg0), Content: uint8(arg1), Registry: value, Repository: value0, Reference: variant}, option)

	switch result.Tag() {
	case Rule_Pass:

		*(*int8)(unsafe.Add(unsafe.Pointer(exportReturnArea), 0)) = int8(int32(0))

	case Rule_Serve:

		*(*int8)(unsafe.Add(unsafe.Pointer(exportReturnArea), 0)) = int8(int32(1))

	case Rule_Revalidate:

		*(*int8)(unsafe.Add(unsafe.Pointer(exportReturnArea), 0)) = int8(int32(2))

	case Rule_Pin:
		payload := result.Pin()
		*(*int8)(unsafe.Add(unsafe.Pointer(exportReturnArea), 0)) = int8(int32(3))
		utf8 := unsafe.Pointer(unsafe.StringData(payload))
		pinner.Pin(utf8)
		*(*uint32)(unsafe.Add(unsafe.Pointer(exportReturnArea), (2 * 4))) = uint32(uint32(len(payload)))
		*(*uint32)(unsafe.Add(unsafe.Pointer(exportReturnArea), 4)) = uint32(uintptr(uintptr(utf8)))

	default:
		panic("unreachable")
	}
	return exportReturnArea

}

//go:wasmexport cabi_post_tidegate:policy/freshness@0.1.0#judge
func wasm_export_post_return_tidegate_policy_freshness_judge(result uintptr) {
	syncExportPinner.Unpin()
}
