"""Small train.csv and test.csv in the layouts of the BARS boards, drawn from a seed; nothing of the real data is in it.

Column orders are spelled out here, as the boards' conversion scripts write them (see kunlun_jax/data/sets/bars.py).
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

COLUMNS = {
    "AmazonElectronics_x1": ("label", "user_id", "item_id", "cate_id", "item_history", "cate_history"),
    "KuaiVideo_x1": (
        "timestamp", "user_id", "item_id", "is_click", "is_like", "is_follow", "pos_items", "neg_items",
    ),
    "TaobaoAd_x1": (
        "clk", "btag_his", "cate_his", "brand_his", "userid", "cms_segid", "cms_group_id", "final_gender_code",
        "age_level", "pvalue_level", "shopping_level", "occupation", "new_user_class_level", "adgroup_id", "cate_id",
        "campaign_id", "customer", "brand", "price", "pid", "btag",
    ),
}  # fmt: skip
USERS, ITEMS, CATES = 12, 30, 5

Row = dict[str, str]


def joined(values: Sequence[int] | np.ndarray) -> str:
    return "^".join(str(value) for value in values)


def cate(items: np.ndarray | np.integer) -> np.ndarray:
    """The category of an item."""
    return np.asarray(items) % CATES + 700


def amazon(rng: np.random.Generator) -> tuple[list[Row], list[Row]]:
    """For each item of a user but the first a pair of rows, clicked and drawn, whose history is all before it."""
    train, test = [], []
    for user in range(USERS):
        items = rng.permutation(ITEMS)[: rng.integers(3, 9)]
        for k in range(1, len(items)):
            split = test if k == len(items) - 1 else train
            for label, item in ((1, items[k]), (0, rng.integers(ITEMS))):
                history = {"item_history": joined(items[:k]), "cate_history": joined(cate(items[:k]))}
                of_row = {"label": label, "user_id": user, "item_id": item, "cate_id": cate(item)}
                split.append({**{name: str(value) for name, value in of_row.items()}, **history})
    return [train[i] for i in rng.permutation(len(train))], test


def kuaivideo(rng: np.random.Generator, rows: int = 160, most: int = 6) -> tuple[list[Row], list[Row]]:
    """Rows in order of time; a history is what its user clicked, and did not, before; of each the first `most`."""
    made, pos, neg = [], [[] for _ in range(USERS)], [[] for _ in range(USERS)]
    for time in range(rows):
        user, item, click = int(rng.integers(USERS)), int(rng.integers(ITEMS)), int(rng.random() < 0.4)
        of_row = {"timestamp": time, "user_id": user, "item_id": item, "is_click": click, "is_like": 0, "is_follow": 0}
        lists = {"pos_items": joined(pos[user][:most]), "neg_items": joined(neg[user][:most])}
        made.append({**{name: str(value) for name, value in of_row.items()}, **lists})
        (pos if click else neg)[user].append(item)
    return made[: rows * 3 // 4], made[rows * 3 // 4 :]


def taobaoad(rng: np.random.Generator, rows: int = 120, most: int = 5) -> tuple[list[Row], list[Row]]:
    """Rows whose histories are the last `most` of what their user did; in one row of ten, a brand was dropped."""
    made, lists = [], [[] for _ in range(USERS)]
    for number in range(rows):
        user = int(rng.integers(USERS))
        for _ in range(rng.integers(3)):
            lists[user].append((int(rng.integers(1, 5)), int(rng.integers(CATES)) + 700, int(rng.integers(1, 9))))
        newest = lists[user][-most:]
        btags, cates, brands = ([event[i] for event in newest] for i in range(3))
        if number % 10 == 0:
            brands = brands[1:]
        row = {name: int(rng.integers(3)) for name in COLUMNS["TaobaoAd_x1"]}
        row |= {"clk": int(rng.random() < 0.3), "userid": user, "btag": 1, "cate_id": 700 + number % CATES}
        row |= {"adgroup_id": int(rng.integers(ITEMS)), "brand": int(rng.integers(9))}
        text = {name: str(value) for name, value in row.items()}
        text |= {"price": f"{rng.random():.15g}", "btag_his": joined(btags), "cate_his": joined(cates)}
        made.append(text | {"brand_his": joined(brands)})
    return made[: rows * 3 // 4], made[rows * 3 // 4 :]


MAKERS = {"AmazonElectronics_x1": amazon, "KuaiVideo_x1": kuaivideo, "TaobaoAd_x1": taobaoad}


def make(name: str, seed: int = 0) -> dict[str, list[Row]]:
    """Rows by split, as text by column."""
    train, test = MAKERS[name](np.random.default_rng(seed))
    return {"train": train, "test": test}


def write(folder: Path, name: str, splits: Mapping[str, list[Row]]) -> Path:
    """The files; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        with (folder / f"{split}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS[name], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    return folder
