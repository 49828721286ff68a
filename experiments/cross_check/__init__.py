"""Our layers against other people's public code, by carrying weights: a file a repository, run on a checkout of it."""
