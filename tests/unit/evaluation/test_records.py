from superdraft.evaluation.decoders.decoders import DecodedDraft
from superdraft.evaluation.measures.typing_simulation import TypingCount
from superdraft.evaluation.reports.records import PromptRecord, RecordFile

DRAFT = DecodedDraft(" naïve\u2028word", -0.5, (-0.2, -1.0))
RECORD = PromptRecord("p1", "sha", (DRAFT,), 9, 0.25, TypingCount(9, 7))


def test_records_come_back_as_they_were(tmp_path):
    RecordFile(tmp_path, "spd k=3", {"alpha": 0}).add([RECORD, PromptRecord("p2", "sha", (), 0, 0.0)])
    again = RecordFile(tmp_path, "spd k=3", {"alpha": 0})
    assert again.get("p1", "sha") == RECORD
    assert again.get("p2", "sha") == PromptRecord("p2", "sha", (), 0, 0.0)


def test_other_settings_another_text_or_another_name_have_no_records(tmp_path):
    RecordFile(tmp_path, "spd", {"alpha": 0}).add([RECORD])
    assert RecordFile(tmp_path, "spd", {"alpha": 0.5}).get("p1", "sha") is None
    assert RecordFile(tmp_path, "spd", {"alpha": 0}).get("p1", "another sha") is None
    assert RecordFile(tmp_path, "SPD", {"alpha": 0}).get("p1", "sha") is None


def test_a_line_that_was_torn_off_is_done_again(tmp_path):
    file = RecordFile(tmp_path, "spd", {})
    file.add([RECORD])
    whole = file.path.read_text()
    file.add([PromptRecord("p2", "sha", (DRAFT,), 9, 0.1)])
    file.path.write_text(file.path.read_text()[: len(whole) + 40])
    torn = RecordFile(tmp_path, "spd", {})
    assert torn.get("p1", "sha") == RECORD
    assert torn.get("p2", "sha") is None
    torn.add([PromptRecord("p2", "sha", (DRAFT,), 9, 0.1)])
    assert RecordFile(tmp_path, "spd", {}).get("p2", "sha") is not None


def test_the_last_record_of_a_prompt_counts(tmp_path):
    file = RecordFile(tmp_path, "spd", {})
    file.add([PromptRecord("p1", "sha", (DRAFT,), 9, 0.25)])
    file.add([RECORD])
    assert RecordFile(tmp_path, "spd", {}).get("p1", "sha") == RECORD
