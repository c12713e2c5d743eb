"""The replay of personal n-grams, with a decoder that says what the n-gram model expects."""

from superdraft.benchmarks.in_process.personal import Arm, row_of, type_together
from superdraft.evaluation.cases.prompts import Prompt
from superdraft.evaluation.decoders.decoders import Decoded, DecodedDraft
from superdraft.ngram_models.scoring.personal import AcceptedText, PersonalModel


def encode(text):
    return [ord(character) for character in text]


class Suggests:
    """Gives every arm the same draft, and notes who asked for what."""

    def __init__(self, *texts):
        self.texts = texts
        self.asked = []

    def decode(self, asks):
        self.asked += [(ask.domain, ask.prompt) for ask in asks]
        drafts = tuple(DecodedDraft(text, (), 0.0, ()) for text in self.texts)
        return [Decoded(drafts, 1, 0.0) for _ in asks]


def arm(name, **more):
    return Arm(name, PersonalModel(encode, {0}), 0.3, **more)


def prompt(name, text="Dear Ann,", reference="thank you for this"):
    return Prompt(name, "email", text, reference)


def test_arms_learn_what_they_accepted_or_all_that_was_typed():
    without, accepts, types = Arm("without"), arm("accepts"), arm("types", learns_everything=True)
    type_together([without, accepts, types], [prompt("a")], Suggests(" wrong", " you for me"), None)
    taken = AcceptedText("Dear Ann, thank", " you for")
    assert accepts.model.texts == [taken]
    assert types.model.texts == [
        AcceptedText("Dear Ann,", " thank"),
        taken,
        AcceptedText("Dear Ann, thank you for", " this"),
    ]
    assert without.keys == accepts.keys == types.keys == [(len(" thank") + 2 + len(" this"), 19)]
    assert without.words == [(2, 3)]


def test_prompts_that_are_typed_together_learn_when_all_are_typed_in_their_order():
    learner, decoder = arm("accepts"), Suggests(" thank you")
    first, second = prompt("a"), prompt("b", "Dear Bob,")
    num_learned = []
    plain = decoder.decode
    decoder.decode = lambda asks: (num_learned.append(learner.model.num_tokens), plain(asks))[1]
    type_together([learner], [first, second], decoder, 2)
    assert set(num_learned) == {0}
    assert [text.before for text in learner.model.texts] == ["Dear Ann,", "Dear Bob,"]
    assert decoder.asked == [("accepts", "Dear Ann,"), ("accepts", "Dear Bob,")]


def test_the_report_compares_with_the_first_arm_by_parts_of_the_way():
    baseline, better = Arm("without"), Arm("better")
    baseline.keys, better.keys = [(10, 10)] * 8, [(10, 10)] * 4 + [(5, 10)] * 4
    baseline.words, better.words = [(1, 4)] * 8, [(2, 4)] * 8
    row = row_of(better, baseline)
    assert row["keystroke_savings"] == 0.25
    assert row["keystroke_savings_by_part"] == [0, 0, 0.5, 0.5]
    assert row["gain"][0] == 0.25
    assert row["gain"][1] < 0.25 < row["gain"][2]
    assert (row["words_right"], row["words_right_gain"]) == (0.5, [0.25, 0.25, 0.25])
