"""A few ratings in the official layout of MovieLens-1M, drawn from a seed; nothing of the real data is in it."""

from pathlib import Path

import numpy as np

USERS, MOVIES, ROWS = 25, 30, 700
FIRST_SECOND = 978_300_000
GENRES = ("Drama", "Comedy|Drama", "Action|Sci-Fi|Thriller", "Comedy")
AGES = (1, 18, 25, 35)

Ratings = dict[str, np.ndarray]


def make_ratings(seed: int = 0, rows: int = ROWS) -> Ratings:
    """Ratings in no order, no user and movie twice, many sharing their second with another one of the same user.

    User USERS and movie MOVIES are rated but not in the other files.
    """
    rng = np.random.default_rng(seed)
    both = rng.permutation(USERS * MOVIES)[:rows]
    user, movie = both // MOVIES + 1, both % MOVIES + 1
    return {
        "user_id": user,
        "movie_id": movie,
        "rating": rng.integers(1, 6, rows),
        "timestamp": FIRST_SECOND + rng.integers(0, 12, rows) * 5000 + 1000 * (user % 3),
    }


def year(movie: int) -> int:
    """Release year of a movie."""
    return 1925 + 2 * movie


def write(root: Path, ratings: Ratings) -> Path:
    """Writes the whole set below `root` as it comes from its authors, and returns `root`."""
    folder = root / "ml-1m"
    folder.mkdir(parents=True, exist_ok=True)
    columns = (ratings[name].tolist() for name in ("user_id", "movie_id", "rating", "timestamp"))
    lines = ["::".join(map(str, row)) + "\n" for row in zip(*columns, strict=True)]
    (folder / "ratings.dat").write_text("".join(lines))
    movies = [f"{m}::Été: part {m} ({year(m)})::{GENRES[m % len(GENRES)]}\n" for m in range(1, MOVIES)]
    (folder / "movies.dat").write_text("".join(movies), encoding="latin-1")
    users = [f"{u}::{'FM'[u % 2]}::{AGES[u % 4]}::{u % 7}::{48000 + 700 * u}-12\n" for u in range(1, USERS)]
    (folder / "users.dat").write_text("".join(users))
    return root
