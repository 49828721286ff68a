"""Three BARS leaderboards with histories (Zhu et al., SIGIR 2022, arXiv 2205.09626): what is in their CSV files.

`kunlun_jax.data.import_bars` converts them. The files are not in this repository, and nothing here was run on them.
What is said of them is read from the boards' own scripts and records (repository at commit: path):

* columns, their order, separator, label, rows: reczoo/Datasets at 71dc577: Amazon/AmazonElectronics_x1,
  KuaiShou/KuaiVideo_x1 and Taobao/TaobaoAd_x1, README.md and convert_*.py of each. A comma and a header line; histories
  are whole numbers joined by "^", empty where there is none; what else is read, but for the price, are whole numbers.
* which columns are inputs, in what role, which tables are shared, counts below which a value has no row of its own,
  whose rows gAUC groups: reczoo/BARS at 5b5e61f: ranking/ctr/DIN/DIN_<set>/*_tuner_config_*.yaml. None of the three has
  a validation file: the boards name test.csv as both, and so chose sizes, rates and passes on it.
* gAUC weighs groups by rows and leaves out those with one class, as ours; values are counted column by column, and a
  list is cut where it is padded, so that of AmazonElectronics at its new end: reczoo/FuxiCTR at v2.0.1:
  fuxictr/metrics.py, fuxictr/preprocess/feature_processor.py and utils.py.
* oldest event first: zhougr1993/DeepInterestNetwork at e1580b4: deepFM/build_dataset.py (the k-th sample of a user has
  the first k of the user's list). KuaiVideo's lists are the first of a user's list, too, so they grow at their end.
  TaobaoAd's raw rows fill up with zeros in front, and DMR learns to predict the last event from those before:
  PaddlePaddle/PaddleRec at 656326a: models/rank/dmr/data/sample_data (4 of its 500 rows have zeros), net.py.
* TaobaoAd's numbers are whole: PaddleRec issue 821 casts brands of both files to integers; its 500 raw rows are so.

The conversion script of TaobaoAd drops zeros from each of its three lists by itself, so they could differ in length; in
the 500 raw rows they do not. The board puts padding in front, which aligns them at the newest event, and so do we; what
is lacking is a null with a table row of its own. Lists of AmazonElectronics are made from one another and never differ.

What a model of the board sees and ours does not: the 64 numbers of each thumbnail of KuaiVideo
(item_visual_emb_dim64.h5, `key` and `value`, a row for every item), which every model of the board reads through a
frozen table for the candidate and both histories. So scores on KuaiVideo are of less input than the board's.
"""

import dataclasses
from collections.abc import Mapping

from kunlun_jax.data.schema import Categorical, EventType, NullPolicy, Schema
from kunlun_jax.data.sets.official import Official


@dataclasses.dataclass(frozen=True)
class History:
    """Lists of a row that together are its events of one type.

    Attributes:
      event: name of the event type.
      fields: column of the lists -> column of the candidate that shares their table and gives the field its name.
      may_differ: whether the lists of a row may differ in length; they end with the same event.
    """

    event: str
    fields: Mapping[str, str]
    may_differ: bool = False


@dataclasses.dataclass(frozen=True)
class BarsSet:
    """What the columns of train.csv and test.csv are; other columns are not read.

    Attributes:
      page: folder of the data set's page in reczoo/Datasets.
      label: column of 0 and 1.
      user: column whose rows gAUC groups.
      item: column that with `user` tells a person which row it is.
      categorical: columns of whole numbers that are context features.
      histories: event types.
      rows: of the board's files, by split.
      dense: columns of numbers.
      min_count: a value needs so many training rows and events for a table row of its own.
    """

    page: str
    label: str
    user: str
    item: str
    categorical: tuple[str, ...]
    histories: tuple[History, ...]
    rows: Mapping[str, int]
    dense: tuple[str, ...] = ()
    min_count: int = 10

    @property
    def official(self) -> Official:
        """Where the files come from, for messages."""
        name = self.page.split("/")[-1]
        return Official(name, f"the page {name} of RecZoo's Datasets, reczoo/Datasets on GitHub, folder {self.page}")

    @property
    def ids(self) -> tuple[str, ...]:
        """Columns of one whole number a row, each once."""
        return tuple(dict.fromkeys((self.user, self.item, *self.categorical)))

    @property
    def lists(self) -> tuple[str, ...]:
        """Columns of lists."""
        return tuple(column for history in self.histories for column in history.fields)

    def schema(self, sizes: Mapping[str, int]) -> Schema:
        """The schema of the converted data, with tables of these numbers of values."""
        features = {
            name: Categorical(name, sizes[name], vocabulary=True, min_count=self.min_count) for name in self.categorical
        }
        nulls: tuple[tuple[str, NullPolicy], ...] = tuple(
            (f"{history.event}.{field}", "own_row")
            for history in self.histories
            if history.may_differ
            for field in history.fields.values()
        )
        return Schema(
            name=self.official.name,
            categorical=tuple(features.values()),
            dense=self.dense,
            events=tuple(
                EventType(history.event, tuple(features[field] for field in history.fields.values()))
                for history in self.histories
            ),
            tasks=(self.label,),
            keys=(self.user, self.item),
            group=self.user,
            allow=("relative_times",),
            nulls=nulls,
        )


SETS = {
    "AmazonElectronics_x1": BarsSet(
        page="Amazon/AmazonElectronics_x1",
        label="label",
        user="user_id",  # groups rows and is no input
        item="item_id",
        categorical=("item_id", "cate_id"),
        histories=(History("review", {"item_history": "item_id", "cate_history": "cate_id"}),),
        rows={"train": 2_608_764, "test": 384_806},
        min_count=1,
    ),
    "KuaiVideo_x1": BarsSet(
        page="KuaiShou/KuaiVideo_x1",
        label="is_click",
        user="user_id",
        item="item_id",
        categorical=("user_id", "item_id"),
        histories=(History("click", {"pos_items": "item_id"}), History("no_click", {"neg_items": "item_id"})),
        rows={"train": 10_931_092, "test": 2_730_291},
    ),
    "TaobaoAd_x1": BarsSet(
        page="Taobao/TaobaoAd_x1",
        label="clk",
        user="userid",
        item="adgroup_id",
        categorical=(
            "userid", "cms_segid", "cms_group_id", "final_gender_code", "age_level", "pvalue_level", "shopping_level",
            "occupation", "new_user_class_level", "adgroup_id", "cate_id", "campaign_id", "customer", "brand", "pid",
            "btag",
        ),
        dense=("price",),
        histories=(
            History("behavior", {"cate_his": "cate_id", "brand_his": "brand", "btag_his": "btag"}, may_differ=True),
        ),
        rows={"train": 21_929_911, "test": 3_099_515},
    ),
}  # fmt: skip
"""Name of the board -> its files."""
