"""Keeps the tag `latest` out, and warns of other tags that move."""

from tidegate import ALLOW, call, deny, name, tag

# Registries of our own: whoever pushes to them knows what `latest` is.
OWN = ("registry.example.com", "ghcr.io")


class Plugin:
    def admit(self, request):
        named = tag(request)
        if named is None:
            return ALLOW
        if named == "latest" and request.registry not in OWN:
            return deny(f"{name(request)} is denied: `latest` is another image tomorrow, name a version")
        if not any(letter.isdigit() for letter in named):
            call.warn(f"{name(request)} moves: a version or a digest stays what it is")
        return ALLOW
