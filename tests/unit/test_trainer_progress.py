"""What the person who waits is shown."""

import io

from trainer.progress import Reporter


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_log_file_gets_lines_without_control_characters() -> None:
    stream = io.StringIO()
    reporter = Reporter(stream)
    with reporter.track("Epochs", 3) as advance:
        for _ in range(3):
            advance(1)
    assert stream.getvalue().startswith("Epochs: 3 of 3 done in ")
    assert stream.getvalue().count("\n") == 1


def test_a_terminal_gets_a_bar() -> None:
    stream = Terminal()
    with Reporter(stream).track("Epochs", 2) as advance:
        advance(2)
    assert "2/2" in stream.getvalue()
    assert "\x1b" in stream.getvalue()


def test_sentences_are_printed_as_they_are() -> None:
    """A file's name may look like markup, and a long sentence stays one line."""
    stream = io.StringIO()
    sentence = "left out: '[red]a.png' " + "x" * 300
    Reporter(stream).say(sentence)
    assert stream.getvalue() == sentence + "\n"
