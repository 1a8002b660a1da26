"""The readers that models/fetch has of its own: byte pairs, compress(1), Debian packages."""

import io
import tarfile

import pytest
from conftest import MODELS  # noqa: F401  (puts models/ on the path)

import kjv
from byte_pairs import Tokenizer, byte_letters


def tokenizer(*merges):
    joined = ["".join(merge.split(" ")) for merge in merges]
    return Tokenizer([*byte_letters().values(), *joined], list(merges))


def pieces(tokenizer, text):
    names = {number: token for token, number in tokenizer.ids.items()}
    return [names[number] for number in tokenizer.encode(text)]


def test_pairs_are_joined_by_rank_not_from_left_to_right():
    assert pieces(tokenizer("b c", "a b", "a bc"), "abcab") == ["abc", "ab"]
    assert pieces(tokenizer("a b", "b c"), "abc") == ["ab", "c"]


def test_pieces_end_where_words_digits_and_marks_do():
    known = tokenizer("Ġ a", "a b", "1 2", "' s", "! !", "Ġ Ġ", "a !")
    assert pieces(known, "ab ab") == ["ab", "Ġa", "b"]
    assert pieces(known, "12 1") == ["1", "2", "Ġ", "1"]  # each digit for itself, without the space before it
    assert pieces(known, "b's a!!") == ["b", "'s", "Ġa", "!!"]
    assert pieces(known, "a   b") == ["a", "ĠĠ", "Ġ", "b"]  # the last space belongs to the word
    assert pieces(known, "é") == ["Ã", "©"]  # bytes, where nothing is joined


def compressed(data, most):
    """What compress(1) writes, as its manual describes it, without a code that clears the table."""
    table, width, group, found = {bytes([i]): i for i in range(256)}, 9, [], [bytes([0x1F, 0x9D, 0x80 | most])]
    count = 257

    def flush():
        bits = sum(code << (number * width) for number, code in enumerate(group))
        found.append(bits.to_bytes(-(-len(group) * width // 8), "little"))
        group.clear()

    def put(code):
        group.append(code)
        if len(group) == 8:
            flush()

    word = b""
    for i in range(len(data)):
        longer = word + data[i : i + 1]
        if longer in table:
            word = longer
            continue
        put(table[word])
        if count < 1 << most:
            table[longer] = count
            count += 1
        # The reader knows an entry one code later.
        if count - 1 == 1 << width and width < most:
            if group:
                group.extend([0] * (8 - len(group)))
                flush()
            width += 1
        word = data[i : i + 1]
    put(table[word])
    flush()
    return b"".join(found)


@pytest.mark.parametrize("most", [9, 10, 12, 16])
def test_what_compress_wrote_is_read(most):
    text = b"".join(b"verse %d of a book, and %d more of it\n" % (i * i, i) for i in range(700)) + b"a" * 400
    assert kjv.decompress(compressed(text, most)) == text


def test_a_code_that_clears_the_table():
    codes = [97, 98, 257, 256]  # a, b, "ab", clear; then codes of 9 bits begin anew in the next group
    first = sum(code << (9 * number) for number, code in enumerate(codes)).to_bytes(9, "little")
    second = sum(code << (9 * number) for number, code in enumerate([99, 100, 257])).to_bytes(4, "little")
    assert kjv.decompress(bytes([0x1F, 0x9D, 0x90]) + first + second) == b"ababcdcd"


def test_verses_of_a_package():
    text = b"Title\nGe1:1 In the beginning.\nGe1:2 And the earth: 3:4.\n"
    data, archive = b"index" + compressed(text, 16), io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:xz") as file:
        info = tarfile.TarInfo(kjv.MEMBER)
        info.size = len(data)
        file.addfile(info, io.BytesIO(data))
    members = {b"debian-binary": b"2.0\n", b"control.tar.xz": b"odd", b"data.tar.xz": archive.getvalue()}
    deb = b"!<arch>\n"
    for name, content in members.items():
        deb += name.ljust(48) + str(len(content)).encode().ljust(10) + b"`\n" + content + b"\n" * (len(content) % 2)
    assert kjv.read_verses(deb) == ["In the beginning.", "And the earth: 3:4."]
    with pytest.raises(kjv.KjvError, match="expected a member data.tar"):
        kjv.read_verses(deb.replace(b"data.tar", b"date.tar"))
