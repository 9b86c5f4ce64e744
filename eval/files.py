"""Result files: never overwritten by the result of another configuration."""

from train.outs import check_free as check_free
