"""What the tests of PyTorch code against definitions in float64 share."""
import unittest

import torch


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


class Case(unittest.TestCase):
    def setUp(self):
        torch.manual_seed(0)

    def near(self, a, b, tolerance=1e-10):
        self.assertEqual(a.shape, b.shape)
        self.assertLess(((a - b).abs().max() / b.abs().max()).item(), tolerance)
