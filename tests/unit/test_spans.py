"""Roles of tokens over every family of tokenizers; T-numbers are those of the specification's tests."""

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers_for_tests import FAMILIES, LOSSLESS, tokenizer_of, wrapped

from train.errors import ModelError, TemplateError
from train.rows import Message
from train.spans import Encoded, Encoder, encode, token_roles
from train.templates import JOIN, Rendering, Role, Segment, render_raw, template_text

P, R, S, T = (int(role) for role in (Role.PROMPT, Role.RESPONSE, Role.SYSTEM, Role.TEMPLATE))
TWO_TURNS = [("user", "Where is the cat?"), ("assistant", "In the garden."),
             ("user", "And the dog?"), ("assistant", "In the house.")]  # fmt: skip


def conversation(*turns):
    return tuple(Message(role, content) for role, content in turns)


def pair(prompt, response):
    return conversation(("user", prompt), ("assistant", response))


def encoded(family, messages, **settings_of_encoder):
    settings_of_encoder.setdefault("max_tokens", 4096)
    result = encode(messages, tokenizer_of(family), **settings_of_encoder)
    assert isinstance(result, Encoded), result
    assert len(result.ids) == len(result.roles)
    return result


def texts(family, result):
    """Pairs of (token's text, role), to read in a failure."""
    return list(
        zip(
            tokenizer_of(family).convert_ids_to_tokens(result.ids.tolist()),
            result.roles.tolist(),
            strict=True,
        )
    )


def decode(family, ids):
    tokenizer = tokenizer_of(family)
    return tokenizer.decode(ids.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False)


def squeezed(text):
    return "".join(text.split())


every_family = pytest.mark.parametrize("family", FAMILIES)
lossless = pytest.mark.parametrize("family", LOSSLESS)

PAIRS = {
    "plain": ("Where is the cat?", "In the garden."),
    "prompt ends in a space": ("Where is the cat? ", "In the garden."),
    "prompt ends in two spaces": ("Where is the cat?  ", "In the garden."),
    "prompt ends in a line end": ("Where is the cat?\n", "In the garden."),
    "prompt ends in two line ends": ("Where is the cat?\n\n", "In the garden."),
    "response starts with a line end": ("Where is the cat?", "\nIn the garden."),
    "response starts with two line ends": ("Where is the cat?", "\n\n1 2"),
    "response starts with a space": ("Where is the cat?", " In the garden."),
    "response starts with two spaces": ("Where is the cat?", "  In"),
    "response ends in white space": ("Where is the cat?", "In the garden. \n "),
    "one letter": ("a", "b"),
    "seam within a word": ("the c", "at is"),
    "emoji": ("Where \U0001f431\U0001f3fd?", "\U0001f3e1\u200d\U0001f33f in"),
    "accents": ("Wo ist die K\u00e4tze\u0301?", "\u00dcberall. \u4e2d\u6587"),
}


@every_family
@pytest.mark.parametrize("case", PAIRS)
def test_t9_boundary_cases(family, case):
    prompt, response = PAIRS[case]
    result = encoded(family, pair(prompt, response))
    roles = result.roles.tolist()
    tokens = texts(family, result)
    first = roles.index(R)
    assert set(roles[:first]) <= {int(Role.NONE), P}, tokens
    assert set(roles[first:]) == {R}, tokens
    assert result.prompt_length == first
    assert result.ids[-1] == tokenizer_of(family).eos_token_id
    if family in LOSSLESS:
        assert decode(family, result.ids[result.roles == P]).strip() == prompt.strip(), tokens
        assert decode(family, result.ids[result.roles == R]).strip() == response.strip(), tokens
    elif case not in ("emoji", "accents"):
        assert squeezed(decode(family, result.ids[result.roles == P])) == squeezed(prompt), tokens
        assert squeezed(decode(family, result.ids[result.roles == R])) == squeezed(response), tokens


@every_family
def test_t6_first_response_token_and_eos_are_response_and_bos_is_none(family):
    tokenizer = tokenizer_of(family)
    result = encoded(family, conversation(*TWO_TURNS))
    eos = tokenizer.eos_token_id
    does_add = len(own := tokenizer("a")["input_ids"]) > 0 and own[0] == tokenizer.bos_token_id is not None
    assert (result.roles == Role.NONE).sum() == does_add
    if does_add:
        assert result.ids[0] == tokenizer.bos_token_id
        assert result.roles[0] == Role.NONE
    ends = np.flatnonzero(result.ids == eos)
    assert len(ends) == 2
    assert set(result.roles[ends].tolist()) == {R}
    first = result.roles.tolist().index(R)
    assert decode(family, result.ids[first : first + 1]).strip() in ("I", "In", "")  # "": a space of its own
    assert result.roles[first - 1] == P
    assert result.roles[ends[0] + 1] == P


def test_bos_is_added_when_asked_for_and_only_once():
    assert encoded("gpt2_like", pair("a", "b")).roles[0] == P
    added = encoded("gpt2_like", pair("a", "b"), add_bos=True)
    assert added.roles[0] == Role.NONE
    assert added.ids[0] == tokenizer_of("gpt2_like").bos_token_id
    without = encoded("byte_level", pair("a", "b"), add_bos=False)
    assert without.roles[0] == P
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}|{% endfor %}"
    for add_bos in (None, True, False):
        result = encoded_with_own("byte_level", template, pair("a", "b"), add_bos=add_bos)
        assert result.roles.tolist().count(Role.NONE) == 1
        assert result.ids.tolist().count(tokenizer_of("byte_level").bos_token_id) == 1
    with pytest.raises(ModelError, match=r"add_bos=true.*no BOS"):
        encode(pair("a", "b"), tokenizer_of("unigram"), add_bos=True, max_tokens=9)


def test_raw_join_is_the_published_one():
    rendering = render_raw(conversation(*TWO_TURNS), "</s>")
    assert rendering.text == "Where is the cat? In the garden.</s>And the dog? In the house.</s>"
    assert rendering.text[rendering.response_starts[1] :] == " In the house.</s>"
    assert render_raw(pair("two  ", "x"), "</s>").text == "two  x</s>"
    with_system = render_raw(conversation(("system", "Be brief."), ("user", "a"), ("assistant", "b")), "</s>")
    assert with_system.text == "Be brief. a b</s>"
    assert [segment.role for segment in with_system.segments] == [S, P, JOIN, R, R]


@every_family
def test_system_message_is_system(family):
    result = encoded(
        family, conversation(("system", "Name the colour."), ("user", "snow"), ("assistant", "white"))
    )
    order = [role for role in dict.fromkeys(result.roles.tolist()) if role != Role.NONE]
    assert order == [S, P, R], texts(family, result)
    if family in LOSSLESS:
        assert decode(family, result.ids[result.roles == S]).strip() == "Name the colour."


@every_family
@pytest.mark.parametrize("template", ["tulu", "chatml"])
def test_t10_every_marker_of_a_two_turn_conversation_is_template(family, template):
    encoder = Encoder(tokenizer_of(family), template=template, max_tokens=4096)
    messages = conversation(("system", "Be brief."), *TWO_TURNS)
    result = encoder.encode(messages)
    assert isinstance(result, Encoded)
    spans = {role: decode(family, result.ids[result.roles == role]) for role in (P, R, S, T)}
    for text in spans[P], spans[R], spans[S]:
        assert "user" not in text
        assert "assistant" not in text
        assert "system" not in text
    marks = squeezed(spans[T])
    if family != "unigram":
        open_, close = ("<|", "|>") if template == "tulu" else ("<|im_start|>", "")
        for speaker, number in (("user", 2), ("assistant", 2), ("system", 1)):
            assert marks.count(f"{open_}{speaker}{close}") == number, texts(family, result)
        assert squeezed(spans[R]) == squeezed("In the garden. In the house.")
        assert squeezed(spans[P]) == squeezed("Where is the cat? And the dog?")
        assert squeezed(spans[S]) == squeezed("Be brief.")


def test_tulu_is_ims_text_with_the_tokenizers_own_eos():
    tokenizer = tokenizer_of("byte_level")
    encoder = Encoder(tokenizer, template="tulu", max_tokens=4096, add_bos=False)
    result = encoder.encode(conversation(("system", " s "), ("user", " u\n"), ("assistant", "\na "),
                                         ("user", "v"), ("assistant", "b")))  # fmt: skip
    assert isinstance(result, Encoded)
    text = tokenizer.decode(result.ids.tolist(), clean_up_tokenization_spaces=False)
    assert text == "<|system|>\ns\n<|user|>\nu\n<|assistant|>\na<|end|>\n<|user|>\nv\n<|assistant|>\nb<|end|>"
    ends = np.flatnonzero(result.ids == tokenizer.eos_token_id)
    assert set(result.roles[ends].tolist()) == {R}
    assert result.roles[ends[0] + 1] == T  # the line end after it


def encoded_with_own(family, template, messages, **settings_of_encoder):
    """Encoded with a template of the tokenizer's own."""
    return encode_with_own(family, template, messages, **settings_of_encoder)


def encode_with_own(family, template, messages, **settings_of_encoder):
    import copy

    tokenizer = copy.deepcopy(tokenizer_of(family))
    tokenizer.chat_template = template
    settings_of_encoder.setdefault("max_tokens", 4096)
    result = encode(messages, tokenizer, template="chat", **settings_of_encoder)
    assert isinstance(result, Encoded), result
    return result


WITH_SYSTEM = conversation(("system", "Be brief."), *TWO_TURNS)
BODY = "{% for m in messages %}<{{ m.role }}>{{ m.content }}END{% endfor %}"


def test_end_of_turn_token_of_the_template_is_response():
    """Any special token right after a response ends it, also one that is not EOS."""
    import copy

    tokenizer = copy.deepcopy(tokenizer_of("byte_level"))
    tokenizer.chat_template = BODY.replace("END", "<|eot|>\n")
    result = encode(conversation(*TWO_TURNS), tokenizer, template="chat", max_tokens=4096)
    assert isinstance(result, Encoded)
    eot = tokenizer.convert_tokens_to_ids("<|eot|>")
    where = np.flatnonzero(result.ids == eot)
    assert result.roles[where].tolist() == [T, R, T, R]  # after a prompt it is the template's
    assert tokenizer.eos_token_id not in result.ids
    assert result.roles[-1] == T


def test_without_an_end_token_eos_is_put_right_after_the_last_response():
    result = encoded_with_own("byte_level", BODY.replace("END", "\n--"), conversation(*TWO_TURNS))
    tokenizer = tokenizer_of("byte_level")
    assert result.ids[-1] == tokenizer.eos_token_id
    assert result.ids.tolist().count(tokenizer.eos_token_id) == 1
    assert result.roles[-1] == R
    assert decode("byte_level", result.ids[result.prompt_length :]) == "In the house."


def test_a_template_may_strip_and_reorder_contents_but_not_rewrite_them():
    stripping = BODY.replace("m.content", "m.content.strip()").replace("END", "{{ eos_token }}")
    result = encoded_with_own("byte_level", stripping, pair("  a ", "\n b\n"))
    assert decode("byte_level", result.ids[result.roles == R]) == "b"
    last_user_holds_system = (
        "{{ messages[1].content }}|{{ messages[2].content }}{{ eos_token }}"
        "{{ messages[0].content }}|{{ messages[3].content }}|{{ messages[4].content }}{{ eos_token }}"
    )
    result = encoded_with_own(
        "byte_level", last_user_holds_system, conversation(("system", "Be brief."), *TWO_TURNS)
    )
    assert decode("byte_level", result.ids[result.roles == S]) == "Be brief."
    assert decode("byte_level", result.ids[result.prompt_length :]) == "In the house."


@pytest.mark.parametrize(("template", "messages", "role"), [
    (BODY.replace("m.content", "m.content.upper()"), pair("a", "b"), "user"),
    (BODY.replace("m.content", "m.content.replace('b', 'c')"), pair("a", "b"), "assistant"),
    ("{{ messages[-1].content }}", pair("a", "b"), "user"),
    (BODY + "{{ messages[1].content }}", pair("a", "b"), "assistant"),
    ("{{ raise_exception('System role not supported') }}", WITH_SYSTEM, "system"),
    ("{% for m in messages %}{{ m.content * 2 }}{% endfor %}", pair("a", "b"), "user"),
    (BODY.replace("END", "{{ m.content | length }}"), pair("a", "b"), "user"),
    ("{{ messages[0].content | length }}" + BODY, pair("a", "b"), "before the first"),
    (BODY + "{% if messages[0].content | length < 9 %}!{% endif %}", pair("a", "b"), "after the last"),
    ("{{ nothing.at.all }}", pair("a", "b"), "user"),
    ("{% if %}", pair("a", "b"), "user"),
])  # fmt: skip
def test_a_template_that_hides_its_roles_is_refused_by_name(template, messages, role):
    with pytest.raises(TemplateError, match=role) as caught:
        encoded_with_own("byte_level", template, messages)
    assert "chat template chat" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_system_message_within_the_first_prompt_and_eos_behind_a_space():
    """As Llama 2 has it; EOS counts only right after a response, and the last one must have it."""
    template = (
        "{% for m in messages[1:] %}{% if m.role == 'user' %}"
        "{{ bos_token + '[INST] ' }}{% if loop.first %}{{ '<<' + messages[0].content + '>> ' }}{% endif %}"
        "{{ m.content.strip() + ' [/INST]' }}"
        "{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
    )
    result = encoded_with_own("sentence_piece", template, WITH_SYSTEM)
    tokenizer = tokenizer_of("sentence_piece")
    ends = np.flatnonzero(result.ids == tokenizer.eos_token_id)
    assert result.roles[ends].tolist() == [T, R]
    assert ends[-1] == len(result.ids) - 1
    assert np.flatnonzero(result.ids == tokenizer.bos_token_id).tolist() == [0, ends[0] + 1]
    assert [result.roles[0], result.roles[ends[0] + 1]] == [Role.NONE, T]
    assert squeezed(decode("sentence_piece", result.ids[result.roles == S])) == "Bebrief."
    assert squeezed(decode("sentence_piece", result.ids[result.roles == P])) == "Whereisthecat?Andthedog?"
    assert squeezed(decode("sentence_piece", result.ids[result.roles == R])) == "Inthegarden.Inthehouse."


def test_a_space_of_the_prompt_counts_also_inside_a_word_of_the_template():
    """Offsets as the post-processor trims them would show the template's word only."""
    result = encoded_with_own(
        "byte_level", "{% for m in messages %}{{ m.content }}the{% endfor %}", pair("a ", "b")
    )
    tokens = [tokenizer_of("byte_level").decode([index]) for index in result.ids.tolist()]
    assert tokens[1:3] == ["a", " the"]
    assert result.roles[1:3].tolist() == [P, P]


def test_template_names_and_files(tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text(BODY.replace("END", "{{ eos_token }}"))
    result = encoded("byte_level", pair("a", "b"), template=str(path))
    assert decode("byte_level", result.ids[result.roles == T]) == "<user><assistant>"
    assert template_text("raw", None) == ""
    for name, own in (("chat", None), (str(tmp_path / "absent"), None), ("chatlm", None)):
        with pytest.raises(TemplateError, match=r"model\.template="):
            template_text(name, own)
    with pytest.raises(TemplateError, match="no chat template"):
        encode(pair("a", "b"), tokenizer_of("byte_level"), template="chat", max_tokens=9)


def test_the_date_in_a_template_does_not_change_overnight():
    template = "{{ strftime_now('%d %b %Y') }}\n" + BODY.replace("END", "{{ eos_token }}")
    result = encoded_with_own("byte_level", template, pair("a", "b"))
    assert decode("byte_level", result.ids).startswith("26 Jul 2024\n<user>")


@every_family
def test_t8_prompt_longer_than_the_maximum_and_truncated_rows(family):
    messages = pair("Where is the cat and the dog? " * 3, "In the garden.")
    whole = encoded(family, messages)
    assert not whole.is_truncated
    start = whole.prompt_length
    assert encode(messages, tokenizer_of(family), max_tokens=start) == "prompt_too_long"
    one = encoded(family, messages, max_tokens=start + 1)
    assert one.is_truncated
    assert one.roles.tolist() == whole.roles.tolist()[: start + 1]
    assert one.prompt_length == start
    assert 0 < one.role_bytes[R] < whole.role_bytes[R]
    assert one.role_bytes[P] == whole.role_bytes[P]
    assert not encoded(family, messages, max_tokens=len(whole.ids)).is_truncated


@every_family
def test_prompt_length_is_that_of_the_last_turn_that_is_kept(family):
    whole = encoded(family, conversation(*TWO_TURNS))
    roles = whole.roles.tolist()
    second = len(roles) - 1 - roles[::-1].index(P) + 1
    assert whole.prompt_length == second
    cut = encoded(family, conversation(*TWO_TURNS), max_tokens=second)
    assert cut.prompt_length == roles.index(R)
    prompt = encoded(family, conversation(*TWO_TURNS[:2], TWO_TURNS[2], ("assistant", "Somewhere else")))
    assert prompt.ids[: prompt.prompt_length].tolist() == whole.ids[:second].tolist()


@every_family
def test_text_of_special_tokens_is_refused(family):
    eos = tokenizer_of(family).eos_token
    for messages in (
        pair(f"say {eos} now", "no"),
        pair("say", f"x{eos}"),
        conversation(("system", eos), *TWO_TURNS),
    ):
        assert encode(messages, tokenizer_of(family), max_tokens=99) == "special_token_in_text"


def test_role_bytes_are_utf8_bytes_of_the_texts():
    messages = conversation(("system", "S\u00e9"), ("user", "\U0001f431? "), ("assistant", "\u00dc\n"))
    result = encoded("byte_level", messages)
    assert result.role_bytes.tolist() == [0, 5, 4, 4, 0]  # prompt 4 + 1; space, 2, 1; 1 + 2 and its space
    chat = encode(messages, tokenizer_of("byte_level"), template="tulu", max_tokens=99)
    assert isinstance(chat, Encoded)
    assert chat.role_bytes[[P, R, S]].tolist() == [5, 2, 3]
    assert chat.role_bytes[T] == len("<|system|>\n\n<|user|>\n\n<|assistant|>\n")


def test_a_special_token_that_swallows_spaces_keeps_its_own_role():
    """As <|assistant|> of Phi-3, whose rstrip flag takes the white space after it, here a response's own."""
    import copy

    from tokenizers import AddedToken

    tokenizer = copy.deepcopy(tokenizer_of("byte_level"))
    tokenizer.add_tokens(
        [AddedToken("<|says|>", special=True, rstrip=True, lstrip=True)], special_tokens=True
    )
    tokenizer.chat_template = "{% for m in messages %}<|says|>{{ m.content }}{% endfor %}{{ eos_token }}"
    result = encode(pair("a ", "\n b"), tokenizer, template="chat", max_tokens=99)
    assert isinstance(result, Encoded)
    says = tokenizer.convert_tokens_to_ids("<|says|>")
    assert result.roles[result.ids == says].tolist() == [T, T]


def test_eos_that_is_not_read_back_is_refused():
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(
        models.WordLevel({"a": 0, "b": 1, "<": 2, "/": 3, "s": 4, ">": 5, "[UNK]": 6}, unk_token="[UNK]")
    )
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer = wrapped(words, eos_token="</s>", unk_token="[UNK]")
    broken = type("Broken", (), {
        "backend_tokenizer": words, "eos_token": "b", "eos_token_id": 0, "bos_token_id": None,
        "all_special_tokens": [], "all_special_ids": [], "chat_template": None,
        "__call__": lambda self, text: {"input_ids": [0]},
    })()  # fmt: skip
    assert tokenizer.eos_token_id is not None
    with pytest.raises(ModelError, match="EOS"):
        Encoder(broken, max_tokens=9)


def roles_of(char_roles, offsets):
    starts, ends = np.array(offsets, np.int64).reshape(-1, 2).T
    return token_roles(np.array(char_roles, np.uint8), starts, ends).tolist()


def test_token_roles_by_precedence():
    chars = [T, S, P, JOIN, R, R, T]
    assert roles_of(chars, [(0, 1), (0, 2), (0, 3), (2, 4), (3, 4), (3, 5), (2, 5), (5, 7), (6, 7)]) == [
        T, S, P, P, R, R, R, R, T,
    ]  # fmt: skip


def test_token_roles_of_empty_offsets():
    chars = [P, P, JOIN, R, R]
    # A trimmed lone space takes the gap before it; at a place without a gap, the next character decides.
    assert roles_of(chars, [(0, 2), (3, 3), (3, 5)]) == [P, R, R]
    assert roles_of(chars, [(0, 0), (0, 2), (2, 2), (2, 5)]) == [P, P, R, R]
    assert roles_of(chars, [(0, 5), (5, 5)]) == [R, R]
    assert roles_of([P, P, P, JOIN, R], [(0, 1), (3, 3), (4, 5)]) == [P, P, R]
    assert roles_of([], [(0, 0)]) == [T]


def test_tokens_of_one_character_share_its_role():
    assert roles_of([P, R], [(0, 1), (0, 1), (1, 2), (1, 2)]) == [P, P, R, R]


def slow_roles(char_roles, offsets):
    """The rule in plain words, one token at a time."""
    result = []
    for start, end in offsets:
        held = set(char_roles[start:end])
        if R in held or held == {JOIN}:
            result.append(R)
        else:
            result.append(P if P in held else S if S in held else T)
    return result


@settings(derandomize=True)
@given(st.lists(st.sampled_from([P, R, S, T, JOIN]), min_size=1, max_size=30), st.data())
def test_token_roles_equal_the_plain_rule(char_roles, data):
    cuts = sorted(data.draw(st.sets(st.integers(0, len(char_roles)), max_size=10)) | {0, len(char_roles)})
    offsets = list(itertools.pairwise(cuts))
    assert roles_of(char_roles, offsets) == slow_roles(char_roles, offsets)


contents = st.text(min_size=1, max_size=25).filter(
    lambda text: text.strip() and not set(text) & set("<[\u2581")
)


@lossless
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(turns=st.lists(st.tuples(contents, contents), min_size=1, max_size=3))
def test_any_conversation_is_partitioned_and_comes_back(family, turns):
    messages = conversation(*(item for prompt, response in turns
                              for item in (("user", prompt), ("assistant", response))))  # fmt: skip
    encoder = ENCODERS.setdefault(family, Encoder(tokenizer_of(family), max_tokens=4096))
    result = encoder.encode(messages)
    assert isinstance(result, Encoded)
    eos = tokenizer_of(family).eos_token_id
    roles, ids = result.roles.tolist(), result.ids.tolist()
    start = 1 if roles[0] == Role.NONE else 0
    assert set(roles[start:]) == {P, R}
    for index, (prompt, response) in enumerate(turns):
        end = ids.index(eos, start)
        first = roles.index(R, start)
        assert roles[start : end + 1] == [P] * (first - start) + [R] * (end + 1 - first)
        if index == len(turns) - 1:
            assert result.prompt_length == first
            assert end == len(ids) - 1
        response_text = decode(family, np.array(ids[first:end]))
        prompt_text = decode(family, np.array(ids[start:first]))
        # At the seam only spaces may change sides: a lone "  " of prompt and joining space is the prompt's.
        assert response_text.strip(" ") == response.strip(" "), texts(family, result)
        assert prompt_text.strip(" ") == prompt.strip(" "), texts(family, result)
        start = end + 1


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(prompt=contents, response=contents, system=contents)
def test_any_content_survives_a_chat_template(prompt, response, system):
    messages = conversation(("system", system), ("user", prompt), ("assistant", response))
    encoder = ENCODERS.setdefault(
        "tulu", Encoder(tokenizer_of("gpt2_like"), template="tulu", max_tokens=4096)
    )
    result = encoder.encode(messages)
    assert isinstance(result, Encoded)
    assert result.role_bytes[R] == len(response.strip().encode())
    assert result.role_bytes[P] == len(prompt.strip().encode())
    assert result.role_bytes[S] == len(system.strip().encode())
    assert decode("gpt2_like", result.ids[result.prompt_length :]) == response.strip()
    assert result.roles[0] == T
    assert result.roles[-1] == R


ENCODERS: dict[str, Encoder] = {}


@every_family
def test_a_batch_equals_one_by_one(family):
    encoder = Encoder(tokenizer_of(family), max_tokens=12)
    eos = tokenizer_of(family).eos_token
    rows = [pair(*case) for case in PAIRS.values()] + [pair(eos, "x"), pair("word " * 20, "x")]
    together = encoder.encode_batch(rows)
    for row, result in zip(rows, together, strict=True):
        alone = encoder.encode(row)
        if isinstance(alone, Encoded):
            assert isinstance(result, Encoded)
            assert alone.ids.tolist() == result.ids.tolist()
            assert alone.roles.tolist() == result.roles.tolist()
            assert alone.is_truncated == result.is_truncated
        else:
            assert alone == result
    assert encoder.encode_batch([]) == []


def test_the_callers_tokenizer_stays_as_it_was():
    tokenizer = tokenizer_of("byte_level")
    before = tokenizer.backend_tokenizer.to_str()
    Encoder(tokenizer, template="tulu", max_tokens=9).encode(pair("a", "b"))
    assert tokenizer.backend_tokenizer.to_str() == before


def test_segments_of_a_rendering():
    assert Rendering((Segment("a", P), Segment("b", R)), (1,)).text == "ab"
