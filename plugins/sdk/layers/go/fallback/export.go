// Generated. Importing this package makes the plugin have the hook `fallback`.

package fallback

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

//go:wasmexport tidegate:policy/fallback@0.1.0#on-failure
func wasm_export_tidegate_policy_fallback_on_failure(arg0 int32, arg1 int32, arg2 uintptr, arg3 uint32, arg4 uintptr, arg5 uint32, arg6 int32, arg7 uintptr, arg8 uint32, arg9 uintptr, arg10 uint32, arg11 uintptr, arg12 uint32) uintptr {

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
	result18 := make([]types.Attempt, 0, arg10)
	for index := 0; index < int(arg10); index++ {
		base := unsafe.Add(unsafe.Pointer(arg9), index*(40+12*4))
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

		var variant13 types.Failure
		switch uint8(*(*uint32)(unsafe.Add(unsafe.Pointer(base), (16 + 7*4)))) {
		case 0:
			value9 := unsafe.String((*uint8)(unsafe.Pointer(uintptr(*(*uint32)(unsafe.Add(unsafe.Pointer(base), (16 + 8*4)))))), *(*uint32)(unsafe.Add(unsafe.Pointer(base), (16 + 9*4))))

			variant13 = types.MakeFailureConnect(value9)

		case 1:
			value10 := unsafe.String((*uint8)(unsafe.Pointer(uintptr(*(*uint32)(unsafe.Add(unsafe.Pointer(base), (16 + 8*4)))))), *(*uint32)(unsafe.Add(unsafe.Pointer(base), (16 + 9*4))))

			variant13 = types.MakeFailureTls(value10)

		case 2:

			variant13 = types.MakeFailureTimeout()

		case 3:

			variant13 = types.MakeFailureStatus(uint16(uint16(*(*uint32)(unsafe.Add(unsafe.Pointer(base), (16 + 8*4))))))

		case 4:
			value11 := unsafe.String((*uint8)(unsafe.Pointer(uintptr(*(*uint32)(unsafe.Add(unsafe.Pointer(base), (16 + 8*4)))))), *(*uint32)(unsafe.Add(unsafe.Pointer(base), (16 + 9*4))))

			variant13 = types.MakeFailureAuth(value11)

		case 5:

			variant13 = types.MakeFailureDigestMismatch()

		case 6:

			variant13 = types.MakeFailureTruncated()

		case 7:
			value12 := unsafe.String((*uint8)(unsafe.Pointer(uintptr(*(*uint32)(unsafe.Add(unsafe.Pointer(base), (16 + 8*4)))))), *(*uint32)(unsafe.Add(unsafe.Pointer(base), (16 + 9*4))))

			variant13 = types.MakeFailureOther(value12)

		default:
			panic("unreachable")
		}
		var option14 witTypes.Option[uint32]
		switch uint8(*(*uint32)(unsafe.Add(unsafe.Pointer(base), (32 + 10*4)))) {
		case 0:

			option14 = witTypes.None[uint32]()
		case 1:

			option14 = witTypes.Some[uint32](uint32(*(*int32)(unsafe.Add(unsafe.Pointer(base), (36 + 10*4)))))
		default:
			panic("unreachable")
		}
		result17 := make([]types.Pair, 0, *(*uint32)(unsafe.Add(unsafe.Pointer(base), (40 + 11*4))))
		for index := 0; index < int(*(*uint32)(unsafe.Add(unsafe.Pointer(base), (40 + 11*4)))); index++ {
			base := unsafe.Add(unsafe.Pointer(uintptr(*(*uint32)(unsafe.Add(unsafe.Pointer(base), (40 + 10*4))))), index*(4*4))
			value15 := unsafe.String((*uint8)(unsafe.Pointer(uintptr(*(*uint32)(unsafe.Add(unsafe.Pointer(base), 0))))), *(*uint32)(unsafe.Add(unsafe.Pointer(base), 4)))
			value16 := unsafe.String((*uint8)(unsafe.Pointer(uintptr(*(*uint32)(unsafe.Add(unsafe.Pointer(base), (2 * 4)))))), *(*uint32)(unsafe.Add(unsafe.Pointer(base), (3 * 4))))

			result17 = append(result17, types.Pair{Key: value15, Value: value16})
		}

		result18 = append(result18, types.Attempt{Candidate: types.Candidate{Registry: value3, Repository: option, TimeoutMs: option5, HedgeAfterMs: option6, Options: result}, Failure: variant13, DurationMs: uint32(*(*int32)(unsafe.Add(unsafe.Pointer(base), (16 + 10*4)))), Bytes: uint64(*(*int64)(unsafe.Add(unsafe.Pointer(base), (24 + 10*4)))), RetryAfterSecs: option14, RateLimit: result17})
	}

	result27 := make([]types.Candidate, 0, arg12)
	for index := 0; index < int(arg12); index++ {
		base := unsafe.Add(unsafe.Pointer(arg11), index*(16+7*4))
		value19 := unsafe.String((*uint8)(unsafe.Pointer(uintptr(*(*uint32)(unsafe.Add(unsafe.Pointer(base), 0))))), *(*uint32)(unsafe.Add(unsafe.Pointer(base), 4)))
		var option21 witTypes.Option[string]
		switch uint8(*(*uint32)(unsafe.Add(unsafe.Pointer(base), (2 * 4)))) {
		case 0:

			option21 = witTypes.None[string]()
		case 1:
			value20 := unsafe.String((*uint8)(unsafe.Pointer(uintptr(*(*uint32)(unsafe.Add(unsafe.Pointer(base), (3 * 4)))))), *(*uint32)(unsafe.Add(unsafe.Pointer(base), (4 * 4))))

			option21 = witTypes.Some[string](value20)
		default:
			panic("unreachable")
		}
		var option22 witTypes.Option[uint32]
		switch uint8(*(*uint32)(unsafe.Add(unsafe.Pointer(base), (5 * 4)))) {
		case 0:

			option22 = witTypes.None[uint32]()
		case 1:

			option22 = witTypes.Some[uint32](uint32(*(*int32)(unsafe.Add(unsafe.Pointer(base), (4 + 5*4)))))
		default:
			panic("unreachable")
		}
		var option23 witTypes.Option[uint32]
		switch uint8(*(*uint32)(unsafe.Add(unsafe.Pointer(base), (8 + 5*4)))) {
		case 0:

			option23 = witTypes.None[uint32]()
		case 1:

			option23 = witTypes.Some[uint32](uint32(*(*int32)(unsafe.Add(unsafe.Pointer(base), (12 + 5*4)))))
		default:
			panic("unreachable")
		}
		result26 := make([]types.Pair, 0, *(*uint32)(unsafe.Add(unsafe.Pointer(base), (16 + 6*4))))
		for index := 0; index < int(*(*uint32)(unsafe.Add(unsafe.Pointer(base), (16 + 6*4)))); index++ {
			base := unsafe.Add(unsafe.Pointer(uintptr(*(*uint32)(unsafe.Add(unsafe.Pointer(base), (16 + 5*4))))), index*(4*4))
			value24 := unsafe.String((*uint8)(unsafe.Pointer(uintptr(*(*uint32)(unsafe.Add(unsafe.Pointer(base), 0))))), *(*uint32)(unsafe.Add(unsafe.Pointer(base), 4)))
			value25 := unsafe.String((*uint8)(unsafe.Pointer(uintptr(*(*uint32)(unsafe.Add(unsafe.Pointer(base), (2 * 4)))))), *(*uint32)(unsafe.Add(unsafe.Pointer(base), (3 * 4))))

			result26 = append(result26, types.Pair{Key: value24, Value: value25})
		}

		result27 = append(result27, types.Candidate{Registry: value19, Repository: option21, TimeoutMs: option22, HedgeAfterMs: option23, Options: result26})
	}

	witRuntime.Unpin()
	result28 := hookOnFailure(types.Request{Action: uint8(arg0), Content: uint8(arg1), Registry: value, Repository: value0, Reference: variant}, result18, result27)

	switch result28.Tag() {
	case Step_Pass:

		*(*int8)(unsafe.Add(unsafe.Pointer(exportReturnArea), 0)) = int8(int32(0))

	case Step_Next:

		*(*int8)(unsafe.Add(unsafe.Pointer(exportReturnArea), 0)) = int8(int32(1))

	case Step_Divert:
		payload := result28.Divert()
		*(*int8)(unsafe.Add(unsafe.Pointer(exportReturnArea), 0)) = int8(int32(2))
		utf8 := unsafe.Pointer(unsafe.StringData((payload).Registry))
		pinner.Pin(utf8)
		*(*uint32)(unsafe.Add(unsafe.Pointer(exportReturnArea), (2 * 4))) = uint32(uint32(len((payload).Registry)))
		*(*uint32)(unsafe.Add(unsafe.Pointer(exportReturnArea), 4)) = uint32(uintptr(uintptr(utf8)))

		switch (payload).Repository.Tag() {
		case witTypes.OptionNone:
			*(*int8)(unsafe.Add(unsafe.Pointer(exportReturnArea), (3 * 4))) = int8(int32(0))

		case witTypes.OptionSome:
			payload := (payload).Repository.Some()
			*(*int8)(unsafe.Add(unsafe.Pointer(exportReturnArea), (3 * 4))) = int8(int32(1))
			utf829 := unsafe.Pointer(unsafe.StringData(payload))
			pinner.Pin(utf829)
			*(*uint32)(unsafe.Add(unsafe.Pointer(exportReturnArea), (5 * 4))) = uint32(uint32(len(payload)))
			*(*uint32)(unsafe.Add(unsafe.Pointer(exportReturnArea), (4 * 4))) = uint32(uintptr(uintptr(utf829)))

		default:
			panic("unreachable")
		}

		switch (payload).TimeoutMs.Tag() {
		case witTypes.OptionNone:
			*(*int8)(unsafe.Add(unsafe.Pointer(exportReturnArea), (6 * 4))) = int8(int32(0))

		case witTypes.OptionSome:
			payload := (payload).TimeoutMs.Some()
			*(*int8)(unsafe.Add(unsafe.Pointer(exportReturnArea), (6 * 4))) = int8(int32(1))
			*(*int32)(unsafe.Add(unsafe.Pointer(exportReturnArea), (4 + 6*4))) = int32(payload)

		default:
			panic("unreachable")
		}

		switch (payload).HedgeAfterMs.Tag() {
		case witTypes.OptionNone:
			*(*int8)(unsafe.Add(unsafe.Pointer(exportReturnArea), (8 + 6*4))) = int8(int32(0))

		case witTypes.OptionSome:
			payload := (payload).HedgeAfterMs.Some()
			*(*int8)(unsafe.Add(unsafe.Pointer(exportReturnArea), (8 + 6*4))) = int8(int32(1))
			*(*int32)(unsafe.Add(unsafe.Pointer(exportReturnArea), (12 + 6*4))) = int32(payload)

		default:
			panic("unreachable")
		}
		slice := (payload).Options
		length := uint32(len(slice))
		result32 := witRuntime.Allocate(pinner, uintptr(length*(4*4)), 4)
		for index, element := range slice {
			base := unsafe.Add(result32, index*(4*4))
			utf830 := unsafe.Pointer(unsafe.StringData((element).Key))
			pinner.Pin(utf830)
			*(*uint32)(unsafe.Add(unsafe.Pointer(base), 4)) = uint32(uint32(len((element).Key)))
			*(*uint32)(unsafe.Add(unsafe.Pointer(base), 0)) = uint32(uintptr(uintptr(utf830)))
			utf831 := unsafe.Pointer(unsafe.StringData((element).Value))
			pinner.Pin(utf831)
			*(*uint32)(unsafe.Add(unsafe.Pointer(base), (3 * 4))) = uint32(uint32(len((element).Value)))
			*(*uint32)(unsafe.Add(unsafe.Pointer(base), (2 * 4))) = uint32(uintptr(uintptr(utf831)))

		}

		*(*uint32)(unsafe.Add(unsafe.Pointer(exportReturnArea), (16 + 7*4))) = uint32(length)
		*(*uint32)(unsafe.Add(unsafe.Pointer(exportReturnArea), (16 + 6*4))) = uint32(uintptr(uintptr(result32)))

	case Step_ServeStale:

		*(*int8)(unsafe.Add(unsafe.Pointer(exportReturnArea), 0)) = int8(int32(3))

	case Step_WaitMs:
		payload := result28.WaitMs()
		*(*int8)(unsafe.Add(unsafe.Pointer(exportReturnArea), 0)) = int8(int32(4))
		*(*int32)(unsafe.Add(unsafe.Pointer(exportReturnArea), 4)) = int32(payload)

	case Step_Stop:

		*(*int8)(unsafe.Add(unsafe.Pointer(exportReturnArea), 0)) = int8(int32(5))

	case Step_Deny:
		payload := result28.Deny()
		*(*int8)(unsafe.Add(unsafe.Pointer(exportReturnArea), 0)) = int8(int32(6))
		*(*int16)(unsafe.Add(unsafe.Pointer(exportReturnArea), 4)) = int16(int32((payload).Status))
		utf833 := unsafe.Pointer(unsafe.StringData((payload).Code))
		pinner.Pin(utf833)
		*(*uint32)(unsafe.Add(unsafe.Pointer(exportReturnArea), (3 * 4))) = uint32(uint32(len((payload).Code)))
		*(*uint32)(unsafe.Add(unsafe.Pointer(exportReturnArea), (2 * 4))) = uint32(uintptr(uintptr(utf833)))
		utf834 := unsafe.Pointer(unsafe.StringData((payload).Message))
		pinner.Pin(utf834)
		*(*uint32)(unsafe.Add(unsafe.Pointer(exportReturnArea), (5 * 4))) = uint32(uint32(len((payload).Message)))
		*(*uint32)(unsafe.Add(unsafe.Pointer(exportReturnArea), (4 * 4))) = uint32(uintptr(uintptr(utf834)))

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

//go:wasmexport cabi_post_tidegate:policy/fallback@0.1.0#on-failure
func wasm_export_post_return_tidegate_policy_fallback_on_failure(result uintptr) {
	syncExportPinner.Unpin()
}
