"""The checker's own tests: python3 -m unittest discover -s tuning/lab"""

import time
import unittest

from checker import ABSENT, Name, body_of


def written(name, size, answered=True):
    write = name.begin(size)
    time.sleep(0.002)
    if answered:
        name.end(write)
        time.sleep(0.002)
    return write


def read(name, write=None, stale=0.0):
    """What is said of a read that begins and ends now, and gives this write (or 404)."""
    now = time.monotonic()
    if write is None:
        return name.judge(now, now, 404, b"", stale)
    return name.judge(now, now, 200, body_of(name.path, write.version, write.size), stale)


class Checker(unittest.TestCase):
    def test_what_was_answered_stands(self):
        name = Name("/u/a")
        self.assertIsNone(read(name))
        one = written(name, 100)
        self.assertIsNone(read(name, one))
        self.assertTrue(read(name).startswith("lost"))

    def test_a_replaced_file_does_not_come_back(self):
        name = Name("/u/a")
        one, two = written(name, 100), written(name, 200)
        self.assertIsNone(read(name, two))
        self.assertTrue(read(name, one).startswith("old"))
        self.assertEqual(read(name, one, stale=60), "stale")

    def test_a_deleted_file_does_not_come_back(self):
        name = Name("/u/a")
        one = written(name, 100)
        written(name, ABSENT)
        self.assertIsNone(read(name))
        self.assertTrue(read(name, one).startswith("back"))

    def test_a_write_without_an_answer_may_have_taken_effect_or_not(self):
        name = Name("/u/a")
        one, two = written(name, 100), written(name, 200, answered=False)
        self.assertIsNone(read(name, one))
        self.assertIsNone(read(name, two))
        three = written(name, 300)
        self.assertIsNone(read(name, three))
        self.assertIsNotNone(read(name, two))

    def test_a_read_beside_a_write_may_give_either(self):
        name = Name("/u/a")
        one = written(name, 100)
        begun = time.monotonic()
        two = written(name, 200)
        now = time.monotonic()
        for write in (one, two):
            self.assertIsNone(name.judge(begun, now, 200, body_of(name.path, write.version, write.size), 0))

    def test_wrong_bytes_are_seen(self):
        name = Name("/u/a")
        one = written(name, 100)
        body = bytearray(body_of(name.path, one.version, one.size))
        body[70] ^= 1
        now = time.monotonic()
        self.assertTrue(name.judge(now, now, 200, bytes(body), 60).startswith("wrong bytes"))
        self.assertIsNotNone(name.judge(now, now, 200, body_of("/u/b", 1, 100), 60))


if __name__ == "__main__":
    unittest.main()
