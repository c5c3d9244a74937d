// Generated. Importing this package makes the plugin have the hook `routing`.

package routing

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

//go:wasmexport tidegate:policy/routing@0.1.0#route
func wasm_export_tidegate_policy_routing_route(arg0 int32, arg1 int32, arg2 uintptr, arg3 uint32, arg4 uintptr, arg5 uint32, arg6 int32, arg7 uintptr, arg8 uint32, arg9 uintptr, arg10 uint32) uintptr {

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
	result9 := make([]types.Candidate, 0, arg10)
	for index := 0; index < int(arg10); index++ {
		base := unsafe.Add(unsafe.Pointer(arg9), index*(16+7*4))
		value3 := unsafe.String((*uint8)(unsafe.Pointer(uintptr(*(*uint32)(unsafe.Add(unsafe.Pointer(base), 0))))), *(*uint32)(unsafe.Add(unsafe.Pointer(base), 4)))
		var option witTypes.Option[string]
		switch uint8(*(*uint32)(unsafe.Add(unsafe.Pointer(base), (2 * 4)))) {
		case 0:

			option = witTypes.None[string]()
		case 1:
			value4 := unsafe.String((*uint8)(unsafe.Pointer(uintptr(*(*uint32)(unsafe.Add(unsafe.Pointer(base), (3 * 4)))))), *(*uint32)(unsafe.Add(unsafe.Pointer(base), (4 * 4))))

			option = witTypes.Some[string](value4)
		default:
			panic("unreachable")
		}
		var option5 witTypes.Option[uint32]
		switch uint8(*(*uint32)(unsafe.Add(unsafe.Pointer(base), (5 * 4)))) {
		case 0:

			option5 = witTypes.None[uint32]()
		case 1:

			option5 = witTypes.Some[uint32](uint32(*(*int32)(unsafe.Add(unsafe.Pointer(base), (4 + 5*4)))))
		default:
			panic("unreachable")
		}
		var option6 witTypes.Option[uint32]
		switch uint8(*(*uint32)(unsafe.Add(unsafe.Pointer(base), (8 + 5*4)))) {
		case 0:

			option6 = witTypes.None[uint32]()
		case 1:

			option6 = witTypes.Some[uint32](uint32(*(*int32)(unsafe.Add(unsafe.Pointer(base), (12 + 5*4)))))
		default:
			panic("unreachable")
		}
		result := make([]types.Pair, 0, *(*uint32)(unsafe.Add(unsafe.Pointer(base), (16 + 6*4))))
		for index := 0; index < int(*(*uint32)(unsafe.Add(unsafe.Pointer(base), (16 + 6*4)))); index++ {
			base := unsafe.Add(unsafe.Pointer(uintptr(*(*uint32)(unsafe.Add(unsafe.Pointer(base), (16 + 5*4))))), index*(4*4))
			value7 := unsafe.String((*uint8)(unsafe.Pointer(uintptr(*(*uint32)(unsafe.Add(unsafe.Pointer(base), 0))))), *(*uint32)(unsafe.Add(unsafe.Pointer(base), 4)))
			value8 := unsafe.String((*uint8)(unsafe.Pointer(uintptr(*(*uint32)(unsafe.Add(unsafe.Pointer(base), (2 * 4)))))), *(*uint32)(unsafe.Add(unsafe.Pointer(base), (3 * 4))))

			result = append(result, types.Pair{Key: value7, Value: value8})
		}

		result9 = append(result9, types.Candidate{Registry: value3, Repository: option, TimeoutMs: option5, HedgeAfterMs: option6, Options: result})
	}

	witRuntime.Unpin()
	result10 := hookRoute(types.Request{Action: uint8(arg0), Content: uint8(arg1), Registry: value, Repository: value0, Reference: variant}, result9)

	switch result10.Tag() {
	case Routes_Pass:

		*(*int8)(unsafe.Add(unsafe.Pointer(exportReturnArea), 0)) = int8(int32(0))

	case Routes_To:
		payload := result10.To()
		*(*int8)(unsafe.Add(unsafe.Pointer(exportReturnArea), 0)) = int8(int32(1))
		slice15 := payload
		length17 := uint32(len(slice15))
		result16 := witRuntime.Allocate(pinner, uintptr(length17*(16+7*4)), 4)
		for index, element := range slice15 {
			base := unsafe.Add(result16, index*(16+7*4))
			utf8 := unsafe.Pointer(unsafe.StringData((element).Registry))
			pinner.Pin(utf8)
			*(*uint32)(unsafe.Add(unsafe.Pointer(base), 4)) = uint32(uint32(len((element).Registry)))
			*(*uint32)(unsafe.Add(unsafe.Pointer(base), 0)) = uint32(uintptr(uintptr(utf8)))

			switch (element).Repository.Tag() {
			case witTypes.OptionNone:
				*(*int8)(unsafe.Add(unsafe.Pointer(base), (2 * 4))) = int8(int32(0))

			case witTypes.OptionSome:
				payload := (element).Repository.Some()
				*(*int8)(unsafe.Add(unsafe.Pointer(base), (2 * 4))) = int8(int32(1))
				utf811 := unsafe.Pointer(unsafe.StringData(payload))
				pinner.Pin(utf811)
				*(*uint32)(unsafe.Add(unsafe.Pointer(base), (4 * 4))) = uint32(uint32(len(payload)))
				*(*uint32)(unsafe.Add(unsafe.Pointer(base), (3 * 4))) = uint32(uintptr(uintptr(utf811)))

			default:
				panic("unreachable")
			}

			switch (element).TimeoutMs.Tag() {
			case witTypes.OptionNone:
				*(*int8)(unsafe.Add(unsafe.Pointer(base), (5 * 4))) = int8(int32(0))

			case witTypes.OptionSome:
				payload := (element).TimeoutMs.Some()
				*(*int8)(unsafe.Add(unsafe.Pointer(base), (5 * 4))) = int8(int32(1))
				*(*int32)(unsafe.Add(unsafe.Pointer(base), (4 + 5*4))) = int32(payload)

			default:
				panic("unreachable")
			}

			switch (element).HedgeAfterMs.Tag() {
			case witTypes.OptionNone:
				*(*int8)(unsafe.Add(unsafe.Pointer(base), (8 + 5*4))) = int8(int32(0))

			case witTypes.OptionSome:
				payload := (element).HedgeAfterMs.Some()
				*(*int8)(unsafe.Add(unsafe.Pointer(base), (8 + 5*4))) = int8(int32(1))
				*(*int32)(unsafe.Add(unsafe.Pointer(base), (12 + 5*4))) = int32(payload)

			default:
				panic("unreachable")
			}
			slice := (element).Options
			length := uint32(len(slice))
			result14 := witRuntime.Allocate(pinner, uintptr(length*(4*4)), 4)
			for index, element := range slice {
				base := unsafe.Add(result14, index*(4*4))
				utf812 := unsafe.Pointer(unsafe.StringData((element).Key))
				pinner.Pin(utf812)
				*(*uint32)(unsafe.Add(unsafe.Pointer(base), 4)) = uint32(uint32(len((element).Key)))
				*(*uint32)(unsafe.Add(unsafe.Pointer(base), 0)) = uint32(uintptr(uintptr(utf812)))
				utf813 := unsafe.Pointer(unsafe.StringData((element).Value))
				pinner.Pin(utf813)
				*(*uint32)(unsafe.Add(unsafe.Pointer(base), (3 * 4))) = uint32(uint32(len((element).Value)))
				*(*uint32)(unsafe.Add(unsafe.Pointer(base), (2 * 4))) = uint32(uintptr(uintptr(utf813)))

			}

			*(*uint32)(unsafe.Add(unsafe.Pointer(base), (16 + 6*4))) = uint32(length)
			*(*uint32)(unsafe.Add(unsafe.Pointer(base), (16 + 5*4))) = uint32(uintptr(uintptr(result14)))

		}

		*(*uint32)(unsafe.Add(unsafe.Pointer(exportReturnArea), (2 * 4))) = uint32(length17)
		*(*uint32)(unsafe.Add(unsafe.Pointer(exportReturnArea), 4)) = uint32(uintptr(uintptr(result16)))

	case Routes_Deny:
		payload := result10.Deny()
		*(*int8)(unsafe.Add(unsafe.Pointer(exportReturnArea), 0)) = int8(int32(2))
		*(*int16)(unsafe.Add(unsafe.Pointer(exportReturnArea), 4)) = int16(int32((payload).Status))
		utf818 := unsafe.Pointer(unsafe.StringData((payload).Code))
		pinner.Pin(utf818)
		*(*uint32)(unsafe.Add(unsafe.Pointer(exportReturnArea), (3 * 4))) = uint32(uint32(len((payload).Code)))
		*(*uint32)(unsafe.Add(unsafe.Pointer(exportReturnArea), (2 * 4))) = uint32(uintptr(uintptr(utf818)))
		utf819 := unsafe.Pointer(unsafe.StringData((payload).Message))
		pinner.Pin(utf819)
		*(*uint32)(unsafe.Add(unsafe.Pointer(exportReturnArea), (5 * 4))) = uint32(uint32(len((payload).Message)))
		*(*uint32)(unsafe.Add(unsafe.Pointer(exportReturnArea), (4 * 4))) = uint32(uintptr(uintptr(utf819)))

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

//go:wasmexport cabi_post_tidegate:policy/routing@0.1.0#route
func wasm_export_post_return_tidegate_policy_routing_route(result uintptr) {
	syncExportPinner.Unpin()
}
