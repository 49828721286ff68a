"""A run of experiments.train so small that it compiles in seconds, as flags."""

from tests.training.tiny import FLAGS as OF_ANY

FLAGS = ("kunlun/small", *OF_ANY)
