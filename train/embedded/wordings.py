"""How each task family is asked: wordings for training and wordings held out for the robustness split.

A wording is a template over the fields that the family's sampler returns (see `train.embedded.tasks`).
Held-out wordings are asked in no other split, so that the robustness split measures whether a model learnt
the task or only its phrasing. No wording may occur in the unlabelled documents.
"""

from typing import Final, NamedTuple


class Wordings(NamedTuple):
    """The wordings of one family; a row's "wording" indexes `seen` followed by `held_out`."""

    seen: tuple[str, ...]
    held_out: tuple[str, ...]


WORDINGS: Final[dict[str, Wordings]] = {
    "colour": Wordings(
        seen=(
            "what colour is the {subject}?",
            "tell me the colour of the {subject}.",
            "name the colour that the {subject} has.",
        ),
        held_out=("the {subject} is of which colour?", "give the colour for this thing: {subject}."),
    ),
    "home": Wordings(
        seen=(
            "where does the {subject} live?",
            "name the home of the {subject}.",
            "in what place is the {subject} at home?",
        ),
        held_out=("the {subject} lives where?", "tell me which place the {subject} calls home."),
    ),
    "sound": Wordings(
        seen=(
            "what sound does the {subject} make?",
            "tell me what the {subject} says.",
            "which sound comes from the {subject}?",
        ),
        held_out=("how does the {subject} sound?", "name the call of the {subject}."),
    ),
    "opposite": Wordings(
        seen=(
            "what is the opposite of {subject}?",
            "give the opposite of {subject}.",
            "which word is the reverse of {subject}?",
        ),
        held_out=("{subject} has which opposite?", "tell me a word that means not {subject}."),
    ),
    "plural": Wordings(
        seen=(
            "what is the plural of {subject}?",
            "write {subject} as a plural.",
            "how do you say more than one {subject}?",
        ),
        held_out=("give the word for many of these: {subject}.", "{subject} has which plural?"),
    ),
    "category": Wordings(
        seen=(
            "what kind of thing is the {subject}?",
            "to which group does the {subject} belong?",
            "name the kind that the {subject} is.",
        ),
        held_out=("the {subject} is what sort of thing?", "give the group of this word: {subject}."),
    ),
    "tool": Wordings(
        seen=(
            "which tool can {subject}?",
            "what do you need to {subject}?",
            "name the thing we use to {subject}.",
        ),
        held_out=("to {subject}, what should i take?", "i want to {subject}. give me the tool."),
    ),
    "next_number": Wordings(
        seen=(
            "what number comes after {subject}?",
            "give the number that follows {subject}.",
            "which number is next after {subject}?",
        ),
        held_out=("{subject} comes before which number?", "add one to {subject}."),
    ),
    "larger": Wordings(
        seen=(
            "which is larger, {subject}?",
            "name the bigger number: {subject}.",
            "tell me which number is more: {subject}.",
        ),
        held_out=("of {subject}, which one is the greatest?", "pick the larger of {subject}."),
    ),
    "addition": Wordings(
        seen=("what is {subject}?", "how much is {subject}?", "work out {subject}."),
        held_out=("{subject} is what number?", "give the sum: {subject}."),
    ),
    "first_word": Wordings(
        seen=(
            "what is the first word here: {subject}?",
            "give the first of these words: {subject}.",
            "which word comes first: {subject}?",
        ),
        held_out=("{subject}. which word was at the start?", "name the opening word of: {subject}."),
    ),
    "last_word": Wordings(
        seen=(
            "what is the last word here: {subject}?",
            "give the last of these words: {subject}.",
            "which word comes last: {subject}?",
        ),
        held_out=("{subject}. which word was at the end?", "name the closing word of: {subject}."),
    ),
    "count": Wordings(
        seen=(
            "how many words are here: {subject}?",
            "count these words: {subject}.",
            "give the number of words in: {subject}.",
        ),
        held_out=("{subject}. how many words was that?", "the words are: {subject}. what is their number?"),
    ),
    "repeat": Wordings(
        seen=("say {subject}.", "repeat this word: {subject}.", "write {subject} in a row."),
        held_out=("i want to read {subject}.", "give me this: {subject}."),
    ),
    "reverse": Wordings(
        seen=(
            "say these words backwards: {subject}.",
            "reverse this list: {subject}.",
            "write from last to first: {subject}.",
        ),
        held_out=("turn this order around: {subject}.", "{subject}. now read it from the end."),
    ),
    "count_up": Wordings(
        seen=(
            "count from {subject}.",
            "list the numbers from {subject}.",
            "write all numbers from {subject}.",
        ),
        held_out=("go up from {subject}.", "which numbers run from {subject}?"),
    ),
    "owner": Wordings(
        seen=(
            "{facts} who has the {subject}?",
            "{facts} name the one with the {subject}.",
            "read this: {facts} whose is the {subject}?",
        ),
        held_out=("{facts} the {subject} is with which person?", "tell me who holds the {subject}. {facts}"),
    ),
    "copy": Wordings(
        seen=("copy this: {subject}.", "repeat after me: {subject}.", "write the same sentence: {subject}."),
        held_out=("say again what i say: {subject}.", "{subject}. please give that back word for word."),
    ),
}
"""The wordings of every family, in a fixed order that seeds depend on."""

FOLLOW_UPS: Final = Wordings(
    seen=("and {follow}?", "what about {follow}?", "now {follow}."),
    held_out=("next, do {follow}.", "the same for {follow}, please."),
)
"""Later turns of a conversation: the same question again about something else."""
