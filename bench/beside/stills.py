"""The time in which the machine ran. A virtual machine's host gives it so much processor time in each tenth of a second, its
disk's work included: with both cores busy and the disk too, it stops them for the rest of it. `reel-bench still` notices; here
that time is taken out of what was measured meanwhile."""

import array
import bisect

from common import *


class Watch:
    """While it lasts, notes when the machine stood still, on any core."""

    def __init__(self, seconds):
        need("chrt", BENCH)
        cores = f"{SERVER_CORE},{LOAD_CORE}"
        args = ["chrt", "-f", "50", BENCH, "still", "--cores", cores, "--seconds", str(seconds)]
        self.child = subprocess.Popen(args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def stills(self):
        """Waits for its end."""
        text, error = self.child.communicate(timeout=120)
        if self.child.returncode:
            sys.exit(error)
        return Stills(tuple(map(float, line.split())) for line in text.splitlines())


class Stills:
    """Times at which the machine stood still: (from, to), in seconds."""

    def __init__(self, times):
        self.begins, self.ends = [], []
        for begin, end in sorted(times):
            if self.ends and begin <= self.ends[-1]:
                self.ends[-1] = max(self.ends[-1], end)
            else:
                self.begins.append(begin)
                self.ends.append(end)
        # Of all before each.
        self.sums = [0]
        for begin, end in zip(self.begins, self.ends):
            self.sums.append(self.sums[-1] + end - begin)

    def _before(self, time):
        at = bisect.bisect_right(self.begins, time)
        return self.sums[at] - (max(0, self.ends[at - 1] - time) if at else 0)

    def between(self, begin, end):
        """Seconds of it."""
        return self._before(end) - self._before(begin)


NEVER = Stills([])


def p99_ms(times, connections, stills=NEVER):
    """Of answers' (asked, had), in milliseconds of the time in which the machine ran; with what a closed loop leaves out, as wrk does:
    in an answer's time as many more would have been asked for, and have waited the rest of it."""
    took = times[-1][1] - times[0][0]
    usual = (took - stills.between(times[0][0], times[-1][1])) * connections / len(times)
    waits = []
    for asked, had in times:
        wait = had - asked - stills.between(asked, had)
        waits.append(wait)
        if wait >= 2 * usual:
            missed = wait - usual
            while missed > usual:
                waits.append(missed)
                missed -= usual
    waits.sort()
    return waits[len(waits) * 99 // 100] * 1e3


def read_times(path):
    """What `reel-bench askers --times` wrote."""
    flat = array.array("d", path.read_bytes())
    return list(zip(flat[::2], flat[1::2]))
