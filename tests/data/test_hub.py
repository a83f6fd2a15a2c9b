"""Data sets in the formats of Hugging Face, made here: no network."""

import json
import sys

import pytest

from fedpeft.data import Example, HuggingFaceDataset
from fedpeft.errors import DataError

ROWS = [{"text": f"text {i}", "label": i % 3, "site": f"s{i % 2}"} for i in range(30)]


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    return datasets


@pytest.fixture
def saved(datasets, tmp_path):
    """A folder of `save_to_disk` with class names, in an order that is not the alphabet's."""
    table = datasets.Dataset.from_list(ROWS).cast_column("label", datasets.ClassLabel(names=["low", "mid", "high"]))
    path = tmp_path / "saved"
    datasets.DatasetDict(train=table, test=table.select(range(6))).save_to_disk(path)
    return str(path)


@pytest.fixture
def folder(datasets, tmp_path):
    path = tmp_path / "folder"
    path.mkdir()
    for split, rows in (("train", ROWS), ("test", ROWS[:6])):
        (path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_saved_data_set_keeps_its_class_names(saved):
    corpus = HuggingFaceDataset(saved, label="label", group="site").load(0)
    assert corpus.labels == ("low", "mid", "high") and corpus.name == "saved"
    assert corpus.train == tuple(Example(r["text"], r["label"], None, r["site"]) for r in ROWS)
    assert corpus.test == corpus.train[:6]


def test_a_folder_of_jsonl(folder, tmp_path):
    corpus = HuggingFaceDataset(folder, label="label", prompt="site").load(0)
    assert corpus.labels == ("0", "1", "2")
    assert corpus.train == tuple(Example(r["text"], r["label"], r["site"]) for r in ROWS)
    assert len(corpus.test) == 6 and (tmp_path / "cache").is_dir()


def test_a_slice_and_a_held_out_part(folder):
    source = HuggingFaceDataset(folder, label="label", train_split="train[:20]", test_split=None, test_fraction=0.3)
    corpus = source.load(0)
    assert (len(corpus.train), len(corpus.test)) == (14, 6) and corpus == source.load(0) != source.load(1)


def test_one_table_without_splits(datasets, tmp_path):
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    source = HuggingFaceDataset(str(tmp_path / "one"), test_split=None)
    assert len(source.load(0).train) == 27
    with pytest.raises(DataError, match=r"without splits; expected .*test_split=None, got 'test'"):
        HuggingFaceDataset(str(tmp_path / "one")).load(0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"test_split": "tets"}, r"no split 'tets'; there are 'train', 'test'; did you mean 'test'\?"),
        ({"label": "lable"}, r"split 'train': no column 'lable'; there are 'text', .*did you mean 'label'\?"),
    ],
)
def test_what_is_missing_is_named(saved, arguments, message):
    with pytest.raises(DataError, match=message):
        HuggingFaceDataset(saved, **arguments).load(0)


def test_a_split_that_load_dataset_does_not_know_is_named(folder):
    with pytest.raises(DataError, match=r"split 'valid': cannot be loaded: .*train"):
        HuggingFaceDataset(folder, test_split="valid").load(0)


def test_a_broken_file_is_a_data_error(folder, tmp_path):
    (tmp_path / "folder" / "train.jsonl").write_text('{"text": ')
    with pytest.raises(DataError, match=r"folder, split 'train': cannot be loaded"):
        HuggingFaceDataset(folder).load(0)


def test_withheld_labels_are_named(datasets, tmp_path):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["a", "b"])})
    table = datasets.Dataset.from_dict({"text": ["x", "y"], "label": [0, -1]}, features=features)
    table.save_to_disk(tmp_path / "withheld")
    with pytest.raises(DataError, match=r"train row 1, column 'label': expected a class in \[0, 2\), got -1; the"):
        HuggingFaceDataset(str(tmp_path / "withheld"), label="label", test_split=None).load(0)


def test_a_name_that_is_nowhere(datasets):
    with pytest.raises(DataError, match=r"no-such/thing, split 'train': cannot be loaded"):
        HuggingFaceDataset("no-such/thing").load(0)


def test_without_the_package_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'fedpeft\[data\]'"):
        HuggingFaceDataset("any").load(0)
