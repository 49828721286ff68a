"""A small log in the official layout of KuaiRand-Pure, drawn from a seed; nothing of the real data is in it."""

import csv
import datetime
from pathlib import Path

import numpy as np

from kunlun_jax.data.sets import kuairand

USERS, VIDEOS, AUTHORS, ROWS = 30, 40, 15, 900
FIRST_DAY, DAYS = "2022-04-25", 10
CHINA_MS, DAY_MS = 8 * 3_600_000, 24 * 3_600_000
LOG = "log_standard_4_22_to_5_08_pure.csv"
OUTCOMES = (
    "is_click", "is_like", "is_follow", "is_comment", "is_forward", "is_hate", "long_view", "play_time_ms",
    "profile_stay_time", "comment_stay_time", "is_profile_enter",
)  # fmt: skip
LOG_COLUMNS = (
    "user_id", "video_id", "date", "hourmin", "time_ms", "is_click", "is_like", "is_follow", "is_comment", "is_forward",
    "is_hate", "long_view", "play_time_ms", "duration_ms", "profile_stay_time", "comment_stay_time", "is_profile_enter",
    "is_rand", "tab",
)  # fmt: skip

Log = dict[str, np.ndarray]


def first_ms() -> int:
    """Midnight in China of the first day, ms since the epoch."""
    return (datetime.date.fromisoformat(FIRST_DAY) - datetime.date(1970, 1, 1)).days * DAY_MS - CHINA_MS


def make_log(seed: int = 0, rows: int = ROWS) -> Log:
    """A log in order of time with many ties, also between rows of one user; no exact duplicates.

    Users USERS - 1 and VIDEOS - 1 are in the log but not in the feature files.
    """
    rng = np.random.default_rng(seed)
    # Few distinct moments, so that ties are common.
    moments = np.sort(rng.choice(DAYS * DAY_MS // 1000, rows // 2, replace=False)) * 1000 + first_ms()
    time_ms = np.sort(rng.choice(moments, rows))
    user = rng.zipf(1.3, rows) % USERS
    video = rng.zipf(1.3, rows) % VIDEOS
    duration = (rng.integers(0, 300, VIDEOS) * 1000)[video]
    log = {name: np.zeros(rows, np.int64) for name in LOG_COLUMNS}
    local = [datetime.datetime.fromtimestamp(t / 1000, datetime.UTC) + datetime.timedelta(hours=8) for t in time_ms]
    log |= {
        "user_id": user,
        "video_id": video,
        "date": np.array([int(t.strftime("%Y%m%d")) for t in local]),
        "hourmin": np.array([t.hour * 100 for t in local]),
        "time_ms": time_ms,
        "duration_ms": duration,
        "tab": rng.integers(0, 4, rows),
    }
    log |= draw_outcomes(rng, rows)
    # Makes every row distinct, whatever the outcomes of others are.
    log["comment_stay_time"] = np.arange(rows)
    return log


def draw_outcomes(rng: np.random.Generator, rows: int) -> Log:
    """New values for all outcome columns."""
    outcomes = {name: rng.integers(0, 2, rows) for name in OUTCOMES}
    for name in ("play_time_ms", "profile_stay_time", "comment_stay_time"):
        outcomes[name] = rng.integers(0, 400_000, rows)
    return outcomes


def write_log(path: Path, log: Log) -> None:
    """Writes a log as an official CSV file."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(LOG_COLUMNS)
        writer.writerows(zip(*(log[name].tolist() for name in LOG_COLUMNS), strict=True))


def write_features(folder: Path, seed: int = 0) -> None:
    """Writes the user and the video file."""
    rng = np.random.default_rng(seed + 1000)
    with (folder / kuairand.USER_FILE).open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("user_id", *kuairand.USER_CATEGORIES, *kuairand.USER_COUNTS))
        for user in range(USERS - 1):
            categories = [rng.choice(["", "[1,5)", "250+", "0.0"]) for _ in kuairand.USER_CATEGORIES]
            writer.writerow((user, *categories, *rng.integers(0, 5000, len(kuairand.USER_COUNTS))))
    with (folder / kuairand.VIDEO_FILE).open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            ("video_id", "author_id", "video_type", "upload_dt", "upload_type", "visible_status", "video_duration",
             "server_width", "server_height", "music_id", "music_type", "tag")
        )  # fmt: skip
        for video in range(VIDEOS - 1):
            tag = ["", "3", "12,62", "3,12,39"][video % 4]
            duration = "" if video % 7 == 0 else float(1000 * video)
            author = 100 + video % AUTHORS
            writer.writerow(
                (video, author, "NORMAL", f"2022-04-{9 + video % 3:02d}", "Web", 0.0, duration, 720.0, 1280.0,
                 9_000_000_000 + video % 5, "" if video % 3 else 9.0, tag)
            )  # fmt: skip


def write(root: Path, log: Log) -> Path:
    """Writes the whole set below `root` as it comes from its authors, and returns `root`."""
    folder = root / "KuaiRand-Pure" / "data"
    folder.mkdir(parents=True, exist_ok=True)
    write_features(folder)
    write_log(folder / LOG, log)
    return root
