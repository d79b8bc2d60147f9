"""Books: their lines, and sentences at the ends of lines."""

import pytest

from exact_titan.errors import InputError
from exact_titan.evaluation.suites.nolima.books import Book, BookTokens, Window, own_books
from tests.evaluation.suites.nolima.folders import line
from tests.evaluation.tokenizers import letters_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return letters_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def lines():
    return [line(number) for number in range(100)]


@pytest.fixture(scope="module")
def book(tokenizer, lines):
    return BookTokens(Book("b", "\n".join(lines) + "\n"), tokenizer, 10_000)


PER_LINE = 13  # tokens of a line with its line break


def test_lines_with_an_answer_are_left_out_and_counted():
    book = Book("b", "Ada came.\nNobody came.\nada came.\nAdabel came.\n", left_out=2).without(["Ada", "Zora"])
    assert book == Book("b", "Nobody came.\nada came.\n", left_out=4)


def test_the_needle_ends_the_line_and_has_its_depth(book, tokenizer, lines):
    assert len(book) == 100 * PER_LINE
    for depth in (0.04, 0.25, 0.5, 0.96, 1.0):
        first, place = book.place(depth, 500, "t")
        assert place.token - first == round(depth * 500)  # official: the window slides, so that the depth is exact
        assert book.text[place.line_break] == "\n"
        text = Window(book, first, ((place, "NEEDLE"),)).text(first + 500)
        before, after = text.split(" NEEDLE\n")
        assert before.endswith(lines[0][-12:])
        assert (lines[0] + "\n") * 99 != text
        assert tokenizer.counts([before])[0] == round(depth * 500)
        # The line break comes after the needle now. All other letters are those of the book.
        assert (
            before + "\n" + after
            == book.text[book.letters[first, 0] : max(place.line_break + 1, book.letters[first + 499, 1])]
        )
        if depth < 1:
            assert len(tokenizer.encode(before + "\n" + after)) == 500


def test_at_depth_0_the_needle_is_the_first_line(book, lines):
    first, place = book.place(0.0, 500, "t")
    window = Window(book, first, ((place, "NEEDLE"),))
    assert (first, place.token, window.least_end) == (0, 0, 0)
    assert window.text(PER_LINE - 1) == f" NEEDLE\n{lines[0]}"
    assert window.text(0) == " NEEDLE\n"


def test_two_sentences_stand_in_the_order_of_their_places(book, lines):
    first, place = book.place(0.5, 130, "t")
    other = book.other_place(0.75, first, 130, place, "t")
    assert (place.token - first, other.token - first) == (65, 104)
    text = Window(book, first, ((place, "NEEDLE"), (other, "OTHER"))).text(first + 130)
    before, between = text.split(" NEEDLE\n")
    between, after = between.split(" OTHER\n")
    assert between == "\n".join(lines[place.token // PER_LINE + 1 : place.token // PER_LINE + 4])
    assert before
    assert after


def test_the_second_place_is_another_line_end_inside_the_window(book):
    first, place = book.place(0.5, 130, "t")
    assert book.other_place(0.5, first, 130, place, "t").token == place.token + PER_LINE
    assert book.other_place(1.0, first, 130, place, "t").token < first + 130
    with pytest.raises(InputError, match="t: the book b has no second line end in 5 tokens"):
        book.other_place(0.5, first + 62, 5, place, "t")


def test_a_short_book_is_refused(book):
    with pytest.raises(InputError, match=r"t: the book b has 1300 tokens without the lines .* 1300 tokens are needed"):
        book.place(1.0, 1300, "t")


def test_only_the_beginning_of_a_book_is_tokenized(tokenizer, lines):
    text = "\n".join(lines * 50) + "\n"
    start = BookTokens(Book("b", text), tokenizer, 700)
    assert 700 <= len(start) < 2 * 700
    assert text.startswith(start.text)
    assert start.text.endswith("\n")
    assert start.place(0.5, 300, "t") == BookTokens(Book("b", text), tokenizer, 10_000).place(0.5, 300, "t")


def test_own_books_are_shuffles_without_distracting_words_and_headings():
    texts = ["I\n\n" + "\n\n".join(f"{line(number)} Text {name}." for number in range(90)) for name in ("one", "two")]
    texts.append("A horse came.\nTwo Horses came.\nA horseman came.\nAn oat came.")
    books = own_books(texts, ["horse", "oats"])
    assert {book.left_out for book in books} == {2}
    assert len({book.text for book in books}) == len(books) == 5
    assert len({tuple(sorted(book.text.split("\n"))) for book in books}) == 1  # the same lines
    assert "A horseman came." in books[0].text
    assert "Horses" not in books[0].text
    assert "I" not in books[0].text.split("\n")
    assert own_books(texts, ["horse", "oats"]) == books
    assert max(len(one) for one in books[0].text.split("\n")) <= 400


def test_long_paragraphs_of_own_books_are_cut_at_the_ends_of_sentences():
    (book, *_) = own_books([" ".join(f"This is sentence {number}." for number in range(60))], ["x"])
    lines = book.text.split("\n")
    assert len(lines) > 2
    assert all(one.endswith(".") and len(one) <= 400 for one in lines)
    assert len(" ".join(lines).split()) == 240
