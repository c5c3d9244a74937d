// Generated. Importing this package makes the plugin have the hook `admission`.

package admission

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

//go:wasmexport tidegate:policy/admission@0.1.0#admit
func wasm_export_tidegate_policy_admission_admit(arg0 int32, arg1 int32, arg2 uintptr, arg3 uint32, arg4 uintptr, arg5 uint32, arg6 int32, arg7 uintptr, arg8 uint32) uintptr {

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
	witRuntime.Unpin()
	result := hookAdmit(types.Request{Action: uint8(arg0), Content: uint8(arg1), Registry: value, Repository: value0, Reference: variant})

	switch result.Tag() {
	case Verdict_Allow:

		*(*int8)(unsafe.Add(unsafe.Pointer(exportReturnArea), 0)) = int8(int32(0))

	case Verdict_CachedOnly:

		*(*int8)(unsafe.Add(unsafe.Pointer(exportReturnArea), 0)) = int8(int32(1))

	case Verdict_Deny:
		payload := result.Deny()
		*(*int8)(unsafe.Add(unsafe.Pointer(exportReturnArea), 0)) = int8(int32(2))
		*(*int16)(unsafe.Add(unsafe.Pointer(exportReturnArea), 4)) = int16(int32((payload).Status))
		utf8 := unsafe.Pointer(unsafe.StringData((payload).Code))
		pinner.Pin(utf8)
		*(*uint32)(unsafe.Add(unsafe.Pointer(exportReturnArea), (3 * 4))) = uint32(uint32(len((payload).Code)))
		*(*uint32)(unsafe.Add(unsafe.Pointer(exportReturnArea), (2 * 4))) = uint32(uintptr(uintptr(utf8)))
		utf83 := unsafe.Pointer(unsafe.StringData((payload).Message))
		pinner.Pin(utf83)
		*(*uint32)(unsafe.Add(unsafe.Pointer(exportReturnArea), (5 * 4))) = uint32(uint32(len((payload).Message)))
		*(*uint32)(unsafe.Add(unsafe.Pointer(exportReturnArea), (4 * 4))) = uint32(uintptr(uintptr(utf83)))

		switch (payload).RetryAfterSecs.Tag() {
		case witTypes.OptionNone:
			*(*int8)(unsafe.Add(unsafe.Pointer(exportReturnArea), (6 * 4))) = int8(int32(0))

		case witTypes.OptionSome:
			payload := (payload).RetryAfterSecs.Some()
			*(*int8)(unsafe.Add(unsafe.Pointer(exportReturnArea), (6 * 4))) = int8(int32(1))
			*(*int32)(unsafe.Add(unsafe.Pointer(exportReturnArea), (4 + 6*4))) = int32(payload)

		default:
			panic("unreachable")
		}

	default:
		panic("unreachable")
	}
	return exportReturnArea

}

//go:wasmexport cabi_post_tidegate:policy/admission@0.1.0#admit
func wasm_export_post_return_tidegate_policy_admission_admit(result uintptr) {
	syncExportPinner.Unpin()
}
