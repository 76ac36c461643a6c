#!/usr/bin/env python3
"""Judges what redbot said (`-o text_verbose` of several objects in one file): every note is one that says that all is
well, or a warning that is explained here; anything else fails."""

import collections
import pathlib
import re
import sys

FINE = [
    r"The server's clock is correct\.",
    r"The resource last changed .*",
    r"The Content-Length header is correct\.",
    r"This response allows all caches to store it\.",
    r"This response allows caches to assign their own freshness lifetimes to it\.",
    r"In exceptional circumstances, caches can serve this response stale\.",
    r"If-None-Match conditional requests are supported\.",
    r"If-Modified-Since conditional requests are supported\.",
    r"A ranged request returned the correct partial content\.",
]
# A warning, what its explanation must say to be this one, and why it is none.
EXPLAINED = [
    (r"The content doesn't match the declared Content-Type\.", r"looks like undefined/undefined",
     "redbot does not know this media type's first bytes"),
    (r"The partial response has a Content-Length equal to the full response\.", r"might be incorrect",
     "the file is shorter than the range that redbot asks for"),
]


def main():
    text = pathlib.Path(sys.argv[1]).read_text()
    objects = re.findall(r"^== (\S+)\n(.*?)(?=^== |\Z)", text, re.S | re.M)
    if not objects:
        sys.exit("redbot: said nothing")
    fine, explained, bad = 0, collections.Counter(), []
    for url, said in objects:
        if not said.startswith("HTTP/1.1 200"):
            bad.append(f"{url}: {said[:60]!r}")
        for note, more in re.findall(r"^  \* (.*?)\n(.*?)(?=^  \* |^\* |\Z)", said, re.S | re.M):
            more = " ".join(more.split())
            why = next((why for warning, says, why in EXPLAINED if re.fullmatch(warning, note) and re.search(says, more)), None)
            if any(re.fullmatch(good, note) for good in FINE):
                fine += 1
            elif why:
                explained[why] += 1
            else:
                bad.append(f"{url}: {note} {more}")
    for line in bad:
        print(f"players: redbot: {line}")
    reasons = "; ".join(f"{count} because {why}" for why, count in explained.items())
    print(f"players: redbot: {len(objects)} objects, {fine} notes that all is well, {sum(explained.values())} warnings explained ({reasons}), {len(bad)} not")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
