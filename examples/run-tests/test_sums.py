import unittest


class SumsTest(unittest.TestCase):
    def test_sum(self) -> None:
        self.assertEqual(sum([1, 2, 3]), 6)
