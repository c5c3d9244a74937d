// A plugin with every hook, which calls everything that the host offers.
package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"tidegate"
	"tidegate/admission"
	"tidegate/call"
	"tidegate/clock"
	"tidegate/config"
	"tidegate/fallback"
	"tidegate/freshness"
	"tidegate/hints"
	"tidegate/image"
	"tidegate/inspection"
	"tidegate/lifecycle"
	"tidegate/log"
	"tidegate/metrics"
	"tidegate/registry"
	"tidegate/routing"
	"tidegate/state"
	"tidegate/types"
	witTypes "tidegate/wit/types"
)

func init() {
	lifecycle.Handle(check)
	hints.Handle(func() hints.Facts { return hints.Facts_Client | hints.Facts_State })
	admission.Handle(admit)
	routing.Handle(route)
	fallback.Handle(onFailure)
	inspection.Handle(inspect)
	freshness.Handle(judge)
}

// What the configuration says, by its keys.
func settings() (map[string]string, error) {
	found := map[string]string{}
	for _, file := range config.Files() {
		for at, line := range strings.Split(strings.TrimSpace(file.Text), "\n") {
			key, value, _ := strings.Cut(line, " ")
			if (key != "mirror" && key != "pin") || value == "" {
				return nil, fmt.Errorf("%s:%d: `%s` is neither `mirror REGISTRY` nor `pin DIGEST`", file.Name, at+1, line)
			}
			found[key] = value
		}
	}
	return found, nil
}

func check() error {
	found, err := settings()
	if err == nil && found["mirror"] == "" {
		err = errors.New("no file says `mirror REGISTRY`")
	}
	return err
}

func tellState() string {
	never := witTypes.None[uint32]()
	state.Set("word", "first", never)
	once := state.SetOnce("word", "second", witTypes.Some[uint32](60))
	kept := state.Get("word")
	state.Remove("word")
	gone := state.Get("word")
	long := "set"
	if set := state.Set(strings.Repeat("k", 257), "v", never); set.IsErr() && set.Err() == state.Error_KeyTooLong {
		long = "key-too-long"
	}
	return fmt.Sprintf("state=%s+%s+%s+%s", once.Ok(), kept.Ok().Some(), gone.Ok().SomeOr("none"), long)
}

func admit(request types.Request) (admission.Verdict, error) {
	added := state.Add(request.Repository, 1, witTypes.Some[uint32](3600))
	if added.IsErr() {
		return admission.Allow, fmt.Errorf("no count: %v", added.Err())
	}
	pulls := added.Ok()
	metrics.Increment("asked", []types.Pair{{Key: "repository", Value: request.Repository}}, 2)
	metrics.Set("pulls", nil, float64(pulls))
	switch request.Repository {
	case "library/kept":
		return admission.CachedOnly, nil
	case "library/told":
	default:
		return admission.Allow, nil
	}
	before := clock.MonotonicNs()
	identity, left, ticks := "none", "none", "back"
	if client := call.Client(); client.IsSome() {
		identity = client.Some().Subject
	}
	if call.RemainingMs() > 0 {
		left = "some"
	}
	if clock.MonotonicNs() >= before {
		ticks = "on"
	}
	call.Warn("this was told")
	parts := []string{
		tidegate.Name(request),
		"id=" + call.Id(),
		"client=" + call.ClientAddress(),
		"identity=" + identity,
		"agent=" + call.UserAgent(),
		"accept=" + strings.Join(call.Accept(), "+"),
		"told=" + strings.Join(call.Header("X-Tell"), "+"),
		"method=" + call.Attribute("method").Some(),
		"nothing=" + call.Attribute("nothing").SomeOr("none"),
		"cache=" + []string{"absent", "fresh", "stale"}[call.Cache()],
		"left=" + left,
		"clock=" + ticks,
		fmt.Sprintf("now=%d", clock.NowMs()/1000),
		tellState(),
		fmt.Sprintf("pulls=%d", pulls),
	}
	return admission.MakeVerdictDeny(types.Denial{
		Status:         429,
		Code:           "TOOMANYREQUESTS",
		Message:        strings.Join(parts, " "),
		RetryAfterSecs: witTypes.Some[uint32](7),
	}), nil
}

func route(request types.Request, candidates []types.Candidate) (routing.Routes, error) {
	switch request.Repository {
	case "library/nowhere":
		return routing.Deny(candidates[0].Registry + " is nowhere"), nil
	case "library/failing":
		return routing.Pass, errors.New("nothing found: " + found(registry.Manifest("../x")))
	case "library/mirrored":
	default:
		return routing.Pass, nil
	}
	rules, err := settings()
	if err != nil {
		return routing.Pass, err
	}
	mirror := tidegate.Candidate(rules["mirror"])
	mirror.Repository = witTypes.Some("team/mirrored")
	mirror.TimeoutMs = witTypes.Some[uint32](30_000)
	mirror.Options = []types.Pair{{Key: "colour", Value: "blue"}}
	return routing.To(append([]types.Candidate{mirror}, candidates...)...), nil
}

func onFailure(request types.Request, attempts []types.Attempt, remaining []types.Candidate) (fallback.Step, error) {
	last := attempts[len(attempts)-1]
	switch {
	case last.Failure.Tag() != types.Failure_Status:
		return fallback.Pass, nil
	case last.Failure.Status() == 503 && len(attempts) == 1:
		return fallback.Wait(1), nil
	case last.Failure.Status() == 503:
		found, err := settings()
		return fallback.Divert(tidegate.Candidate(found["mirror"])), err
	case len(remaining) > 0:
		return fallback.Next, nil
	case request.Repository != "library/mirrored":
		return fallback.Pass, nil
	}
	var tried, limits []string
	for _, attempt := range attempts {
		tried = append(tried, attempt.Candidate.Registry+"/"+attempt.Candidate.Repository.SomeOr("-"))
	}
	for _, limit := range last.RateLimit {
		limits = append(limits, limit.Key+"="+limit.Value)
	}
	denial := tidegate.Denial(fmt.Sprintf("%d of %s, again after %d, %s, %d bytes", last.Failure.Status(),
		strings.Join(tried, "+"), last.RetryAfterSecs.Some(), strings.Join(limits, "+"), last.Bytes))
	denial.Status, denial.Code = 404, "MANIFEST_UNKNOWN"
	return fallback.MakeStepDeny(denial), nil
}

// What a look-up brought: the length of it, or the error by its name.
func found(bytes witTypes.Result[[]uint8, registry.Error]) string {
	if bytes.IsOk() {
		return strconv.Itoa(len(bytes.Ok()))
	}
	if err := bytes.Err(); err.Tag() == registry.Error_Unavailable {
		return err.Unavailable()
	}
	return []string{"not-found", "denied", "too-large", "budget-spent"}[bytes.Err().Tag()]
}

func inspect(request types.Request) (inspection.Finding, error) {
	hold := image.Annotation("org.example.hold")
	if hold.IsNone() {
		return inspection.Release, nil
	}
	seconds, err := strconv.ParseUint(hold.Some(), 10, 32)
	if err != nil {
		return inspection.Release, err
	}
	target := image.Target().Some()
	var layers, annotations, referrers []string
	for _, layer := range image.Layers() {
		layers = append(layers, layer.Digest)
	}
	for _, pair := range image.Annotations() {
		annotations = append(annotations, pair.Key+"="+pair.Value)
	}
	for _, found := range registry.Referrers(target.Digest, witTypes.Some("application/vnd.example.sbom")).Ok() {
		referrers = append(referrers, fmt.Sprintf("%s+%s+%d", found.Digest, found.ArtifactType.Some(), found.Size))
	}
	subject := "none"
	if of := image.Subject(); of.IsSome() {
		subject = of.Some().Digest
	}
	parts := []string{
		fmt.Sprintf("target=%s+%s+%d", target.Digest, target.MediaType, target.Size),
		fmt.Sprintf("raw=%d", len(image.Raw())),
		"layers=" + strings.Join(layers, "+"),
		"annotations=" + strings.Join(annotations, "+"),
		"artifact=" + image.ArtifactType().SomeOr("none"),
		"subject=" + subject,
		"label=" + image.Label("name").Ok().Some(),
		"unlabelled=" + image.Label("nothing").Ok().SomeOr("none"),
		fmt.Sprintf("config=%d", len(image.Config().Ok())),
		"parents=" + strings.Join(image.Parents(), "+"),
		"other=" + found(registry.Manifest("other")),
		"gone=" + found(registry.Manifest("gone")),
		"bad=" + found(registry.Manifest("../x")),
		"referrers=" + strings.Join(referrers, "+"),
		"blob=" + found(registry.Blob(layers[2])),
	}
	return inspection.For(uint32(seconds), strings.Join(parts, " ")), nil
}

func judge(request types.Request, cached witTypes.Option[freshness.CachedTag]) (freshness.Rule, error) {
	copy := "nothing"
	if cached.IsSome() {
		copy = fmt.Sprintf("%s for %d s", cached.Some().Digest, cached.Some().AgeSecs)
	}
	log.Write(log.Level_Info, tidegate.Name(request)+": the cache holds "+copy)
	switch tag, _ := tidegate.Tag(request); tag {
	case "pinned":
		found, err := settings()
		return freshness.Pin(found["pin"]), err
	case "moving":
		return freshness.Revalidate, nil
	}
	return freshness.Pass, nil
}

// Go asks for it; nothing calls it.
func main() {}
