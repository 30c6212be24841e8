"""Log files: whatever pieces bytes arrive in, every line is there once, in order, and cursors read on."""

from __future__ import annotations

import itertools
import random
import struct
import time
from pathlib import Path

import pytest

from airflow_invocations.models import LogPage, LogProcess, LogRecord
from airflow_invocations.server.db import CheckedInvocation
from airflow_invocations.server.execution import logs
from airflow_invocations.server.execution.logs import Cursor, InvalidCursorError, LogFiles
from airflow_invocations.server.execution.redaction import Redaction

ID = "iv_0000000000000001"
INVOCATION = CheckedInvocation(ID, "og_local")


@pytest.fixture
def files(tmp_path: Path) -> LogFiles:
    return LogFiles(tmp_path / "logs")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "logs" / f"{ID}.log"


def write(files: LogFiles, *pieces: bytes, process: LogProcess = LogProcess.Action) -> None:
    """What one pipe delivers in these pieces until it is closed."""
    writer = files.writer(ID)
    stream = writer.stream(process)
    for piece in pieces:
        stream.feed(piece)
    stream.finish()
    writer.close()


def pages(files: LogFiles, limit: int = logs.PAGE_LINES, cursor: str | None = None) -> list[LogPage]:
    """All pages from `cursor` on."""
    found = []
    while True:
        page = files.read(INVOCATION, cursor, limit)
        found.append(page)
        if not page.has_next:
            return found
        cursor = page.last_read


def records(files: LogFiles, limit: int = logs.PAGE_LINES) -> list[LogRecord]:
    return [record for page in pages(files, limit) for record in page.items]


def lines(found: list[LogRecord]) -> list[str]:
    """The lines as they were written: parts put together where the first of them stands."""
    whole: dict[object, str] = {}
    for number, record in enumerate(found):
        key = number if record.partial_id is None else record.partial_id
        whole[key] = whole.get(key, "") + record.log
    return list(whole.values())


def last_state(line: bytes) -> bytes:
    """What a terminal shows last of a line, as far as each state is as long as the one before."""
    return next((state for state in reversed(line.split(b"\r")) if state.strip()), b"")


def never_show_what_is_redrawn(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(logs.time, "monotonic", lambda: -1.0)


class TestLines:
    def test_a_log_that_nobody_has_written_is_empty(self, files: LogFiles) -> None:
        assert files.read(INVOCATION) == LogPage(items=[], has_next=False, last_read=None)

    def test_lines_come_back_with_time_and_process(self, files: LogFiles) -> None:
        before = time.time()
        write(files, b"one\ntwo\n", process=LogProcess.Setup)
        first, second = records(files)
        assert (first.log, second.log) == ("one", "two")
        assert first.process is second.process is LogProcess.Setup
        assert first.partial_id is None
        assert before - 0.001 <= first.timestamp.timestamp() <= time.time()

    @pytest.mark.parametrize(
        ("written", "read"),
        [
            (b"", []),
            (b"\n", [""]),
            (b"a", ["a"]),
            (b"a\n\n\nb\n", ["a", "", "", "b"]),
            (b"a\r\nb\r\n", ["a", "b"]),
            (b"10%\r20%\r30%\n", ["30%"]),
            (b"\r 99%|###|\r100%|####|Error: x\n", ["100%|####|Error: x"]),
            (b"a\r\r\n", ["a"]),
            (b"a\r   \r\x1b[2K\r\nb\n", ["a", "b"]),
            (b"\r", [""]),
            (b"\r\n", [""]),
            (b"a\n\r\nb", ["a", "", "b"]),
            ("23 °C 日本語 🤖".encode(), ["23 °C 日本語 🤖"]),
            (b"bad \xff\xfe byte\n\xc3\n", ["bad �� byte", "�"]),
            (b"nul \x00 and escape \x1b[31m\n", ["nul \x00 and escape \x1b[31m"]),
            (b"\x0b\x0c\x1c\x1d\x85\xe2\x80\xa8\n", ["\x0b\x0c\x1c\x1d�\u2028"]),
        ],
    )
    def test_a_line_is_what_it_was_when_its_line_feed_came(
        self, files: LogFiles, written: bytes, read: list[str]
    ) -> None:
        write(files, written)
        assert [record.log for record in records(files)] == read

    def test_a_line_feed_in_the_next_piece_ends_the_line(self, files: LogFiles) -> None:
        write(files, b"a\r", b"\nb", b"c\n", b"d")
        assert [record.log for record in records(files)] == ["a", "bc", "d"]

    def test_a_whole_line_can_be_read_before_the_next_one_comes(self, files: LogFiles) -> None:
        writer = files.writer(ID)
        stream = writer.stream(LogProcess.Action)
        stream.feed(b"one\ntw")
        assert [record.log for record in records(files)] == ["one"]
        stream.feed(b"o\n")
        assert [record.log for record in records(files)] == ["one", "two"]
        writer.close()

    def test_two_pipes_that_end_in_the_middle_of_a_line_do_not_mix(self, files: LogFiles) -> None:
        writer = files.writer(ID)
        out, err = writer.stream(LogProcess.Action), writer.stream(LogProcess.Action)
        out.feed(b"out ")
        err.feed(b"err ")
        out.feed(b"1\nout")
        err.feed(b"1\n")
        err.finish()
        out.finish()
        writer.close()
        assert [record.log for record in records(files)] == ["out 1", "err 1", "out"]

    def test_lines_of_the_server_are_split_too(self, files: LogFiles) -> None:
        writer = files.writer(ID)
        writer.say(LogProcess.Setup, "one\ntwo")
        writer.say(LogProcess.Setup, "half \ud800 of a pair " + "x" * 5 * logs.MAX_LINE)
        writer.close()
        assert lines(records(files)) == ["one", "two", "half ? of a pair " + "x" * 5 * logs.MAX_LINE]

    def test_the_last_line_that_is_not_blank_is_remembered(self, files: LogFiles) -> None:
        writer = files.writer(ID)
        stream = writer.stream(LogProcess.Action)
        assert stream.last_line == b""
        stream.feed(b"first\nTraceback\n  ValueError: no\r\n\n  \n")
        assert stream.last_line == b"ValueError: no"
        stream.feed(b"the end")
        stream.finish()
        assert stream.last_line == b"the end"
        writer.close()

    def test_listeners_hear_how_much_a_log_has_grown(self, files: LogFiles) -> None:
        heard: list[tuple[str, int]] = []
        files.listen(lambda invocation_id, size: heard.append((invocation_id, size)))
        write(files, b"one\n", b"two")
        assert heard == [(ID, 4), (ID, 4)]


class TestRedrawnLines:
    """Progress bars: what is overwritten is kept once a second, and the last state always."""

    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        """Its only item is the time."""
        clock = [1000.0]
        monkeypatch.setattr(logs.time, "monotonic", lambda: clock[0])
        return clock

    @pytest.mark.parametrize("form", ["\r{}", "{}\r"])
    def test_one_state_a_second_can_be_read_while_it_is_drawn(
        self, files: LogFiles, clock: list[float], form: str
    ) -> None:
        writer = files.writer(ID)
        stream = writer.stream(LogProcess.Action)
        for tick in range(61):
            stream.feed(form.format(f"{tick:3}%|####|").encode())
            clock[0] += 0.125
        shown = [record.log for record in records(files)]
        assert len(shown) in (7, 8)
        stream.finish()
        writer.close()
        kept = [record.log for record in records(files)]
        assert kept[:-1] == shown
        assert kept[-1] == " 60%|####|"
        assert stream.last_line == b"60%|####|"
        assert [int(state[:3]) for state in shown] == sorted({int(state[:3]) for state in shown})

    def test_each_pipe_has_a_second_of_its_own(self, files: LogFiles, clock: list[float]) -> None:
        writer = files.writer(ID)
        for name in ("out", "err"):
            stream = writer.stream(LogProcess.Action)
            for tick in range(10):
                stream.feed(f"\r{name} {tick}".encode())
        writer.close()
        assert [record.log for record in records(files)] == ["out 0", "err 0"]

    def test_a_carriage_return_that_is_split_from_its_line_feed_overwrites_nothing(
        self, files: LogFiles, clock: list[float]
    ) -> None:
        write(files, b"one\r", b"\ntwo\r", b"\n", b"\r", b"\n", b"three\r")
        assert [record.log for record in records(files)] == ["one", "two", "", "three"]

    def test_the_last_state_is_kept_once(self, files: LogFiles, clock: list[float]) -> None:
        writer = files.writer(ID)
        stream = writer.stream(LogProcess.Action)
        for piece in (b"\r 50%", b"\r100%", b"\r", b"    ", b"\r"):
            clock[0] += 2
            stream.feed(piece)
            stream.show_redrawn()
        assert [record.log for record in records(files)] == [" 50%", "100%"]
        stream.feed(b"\nnext\n")
        writer.close()
        assert [record.log for record in records(files)] == [" 50%", "100%", "next"]

    def test_unfinished_line_is_shown_without_further_output(
        self, files: LogFiles, clock: list[float]
    ) -> None:
        writer = files.writer(ID)
        stream = writer.stream(LogProcess.Action)
        stream.feed(b"a prompt: ")
        clock[0] += 2
        stream.show_redrawn()
        assert records(files) == []  # no line that is redrawn: its end may take as long as it likes
        stream.feed(b"yes\n\r1%\r2%\r3%")
        assert [record.log for record in records(files)] == ["a prompt: yes", "2%"]
        stream.show_redrawn()
        clock[0] += 2
        stream.show_redrawn()
        stream.show_redrawn()
        stream.feed(b"\n")
        writer.close()
        assert [record.log for record in records(files)] == ["a prompt: yes", "2%", "3%"]

    def test_half_of_a_secret_is_not_shown(self, files: LogFiles, clock: list[float]) -> None:
        writer = files.writer(ID)
        stream = writer.stream(LogProcess.Action, Redaction(["s3cr3t-value"]))
        for piece in (b"\r1% s3cr3t-value", b"\r2% s3cr3t", b"-value", b"\r3%"):
            clock[0] += 2
            stream.feed(piece)
            stream.show_redrawn()
        stream.finish()
        writer.close()
        assert [record.log for record in records(files)] == ["1% ***", "2% ***", "3%"]

    def test_a_long_line_ends_where_it_is_overwritten(self, files: LogFiles, clock: list[float]) -> None:
        long = b"x" * 2 * logs.MAX_LINE
        write(files, b"\r1%\r", long, b"\r2%", b"\r3%\r", b"\n", long + b"\r", b"\r4%")
        assert lines(records(files)) == ["1%", long.decode(), "3%", long.decode(), "4%"]

    def test_an_hour_of_a_bar_is_an_hour_of_states_whatever_pieces_it_comes_in(
        self, files: LogFiles, clock: list[float]
    ) -> None:
        dice = random.Random(7)
        data = b"".join(b"\r%5d/36000 [##]" % state for state in range(36_001)) + b"\nError: x\n"
        writer = files.writer(ID)
        stream = writer.stream(LogProcess.Action)
        place = 0
        while place < len(data):
            step = dice.randrange(1, 400)
            stream.feed(data[place : place + step])
            clock[0] += 0.1 * step / 17
            place += step
        stream.finish()
        writer.close()
        *shown, last, error = [record.log for record in records(files)]
        assert (last, error) == ("36000/36000 [##]", "Error: x")
        assert 1800 < len(shown) <= 3601
        states = [int(line.split("/")[0]) for line in shown]
        assert states == sorted(set(states))
        assert all("\r" not in line for line in shown)


class TestLongLines:
    def test_a_megabyte_is_kept_in_parts_that_belong_together(self, files: LogFiles) -> None:
        text = "".join(random.Random(1).choices("aé日🤖 ", k=400_000))
        content = f"before\n{text}\nafter\n".encode()
        write(files, *(content[start : start + 5000] for start in range(0, len(content), 5000)))
        found = records(files)
        parts = [record for record in found if record.partial_id]
        assert len(parts) > 10
        assert len({record.partial_id for record in parts}) == 1
        assert max(len(record.log.encode()) for record in found) <= logs.MAX_LINE + 5000
        assert "�" not in "".join(record.log for record in found)
        assert lines(found) == ["before", text, "after"]

    def test_two_long_lines_at_once_have_parts_of_their_own(self, files: LogFiles) -> None:
        writer = files.writer(ID)
        out, err = writer.stream(LogProcess.Action), writer.stream(LogProcess.Action)
        for _ in range(4):
            out.feed(b"o" * logs.MAX_LINE)
            err.feed(b"e" * logs.MAX_LINE)
        out.feed(b"\nnext out\n")
        err.finish()
        out.finish()
        writer.close()
        assert sorted(lines(records(files))) == [
            "e" * 4 * logs.MAX_LINE,
            "next out",
            "o" * 4 * logs.MAX_LINE,
        ]

    def test_the_line_after_a_long_one_is_a_line_of_its_own(self, files: LogFiles) -> None:
        write(files, b"x" * logs.MAX_LINE, b"\r", b"\n", b"y" * logs.MAX_LINE, b"\nz\n")
        found = records(files)
        assert lines(found) == ["x" * logs.MAX_LINE, "y" * logs.MAX_LINE, "z"]
        assert found[-1].partial_id is None

    @pytest.mark.parametrize("letter", ["é", "日", "🤖"])
    def test_no_character_is_cut_in_two(self, files: LogFiles, letter: str) -> None:
        for shift in range(4):
            files = LogFiles(files._folder / str(shift))
            text = "x" * shift + letter * logs.MAX_LINE
            write(files, text.encode())
            assert "".join(record.log for record in records(files)) == text


def test_nothing_is_lost_or_reordered_whatever_pieces_it_comes_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "MAX_LINE", 24)
    never_show_what_is_redrawn(monkeypatch)
    dice = random.Random(20260131)
    for round_number in range(150):
        files = LogFiles(tmp_path / str(round_number))
        writer = files.writer(ID)
        written: list[list[str]] = []
        queues: list[list[bytes]] = []
        for _ in range(2):
            # Undecodable bytes only in lines that can't be cut: where one is cut, � may stand twice.
            content = [
                bytes(dice.choices([*range(256), *b"\r" * 50], k=dice.randrange(12))).replace(b"\n", b"")
                if dice.random() < 0.5
                else "".join(dice.choices("abé日🤖", k=dice.randrange(120))).encode()
                for _ in range(dice.randrange(12))
            ]
            ending = dice.choice([b"\n", b"\r\n"])
            data = ending.join(content) + dice.choice([b"", ending])
            expected = data.removesuffix(b"\n").split(b"\n") if data else []
            written.append([last_state(line).decode(errors="replace") for line in expected])
            cuts = sorted(dice.choices(range(len(data) + 1), k=dice.randrange(20)))
            queues.append([data[a:b] for a, b in itertools.pairwise([0, *cuts, len(data)])])
        streams = [writer.stream(process) for process in (LogProcess.Action, LogProcess.Setup)]
        while any(queues):
            pipe = dice.choice([pipe for pipe in (0, 1) if queues[pipe]])
            streams[pipe].feed(queues[pipe].pop(0))
        for stream in streams:
            stream.finish()
        writer.close()
        found = records(files, limit=dice.choice([1, 2, 7, 1000]))
        for process, expected_lines in zip((LogProcess.Action, LogProcess.Setup), written, strict=True):
            mine = [record for record in found if record.process is process]
            assert lines(mine) == expected_lines, round_number
        assert [record.timestamp for record in found] == sorted(record.timestamp for record in found)


class TestPages:
    def test_pages_are_cut_by_lines(self, files: LogFiles) -> None:
        write(files, *(b"%d\n%d\n%d\n" % (n, n + 1, n + 2) for n in range(0, 30, 3)))
        for limit in (1, 2, 3, 4, 7, 29, 30, 31):
            found = pages(files, limit)
            assert [record.log for page in found for record in page.items] == [str(n) for n in range(30)]
            assert all(len(page.items) == limit for page in found[:-1])
            assert len(found) == -(-30 // limit)

    def test_pages_are_cut_by_bytes_too(self, files: LogFiles) -> None:
        line = b"x" * 60_000 + b"\n"
        write(files, *([line] * 40))
        found = pages(files)
        assert len(found) == 3
        assert all(
            sum(len(record.log) for record in page.items) < logs.PAGE_BYTES + len(line) for page in found
        )
        assert sum(len(page.items) for page in found) == 40

    def test_a_reader_reads_on_where_it_stopped_while_the_log_grows(self, files: LogFiles) -> None:
        writer = files.writer(ID)
        stream = writer.stream(LogProcess.Action)
        cursor, seen = None, []
        for number in range(50):
            stream.feed(b"%d a\n%d b\n" % (number, number))
            page = files.read(INVOCATION, cursor, limit=3)
            seen += [record.log for record in page.items]
            cursor = page.last_read
        writer.close()
        seen += [record.log for page in pages(files, cursor=cursor) for record in page.items]
        assert seen == [f"{number} {letter}" for number in range(50) for letter in "ab"]

    def test_a_reader_at_the_end_keeps_its_place(self, files: LogFiles) -> None:
        write(files, b"one\n")
        end = files.read(INVOCATION).last_read
        assert files.read(INVOCATION, end) == LogPage(items=[], has_next=False, last_read=end)
        write(files, b"two\n")
        assert [record.log for record in files.read(INVOCATION, end).items] == ["two"]

    @pytest.mark.parametrize(
        "cursor",
        [
            "",
            "1",
            "a.b",
            "-1.0",
            "0.-1",
            "0.0.0",
            " 0.0",
            "0.0\n",
            "0x1.0",
            "\N{ARABIC-INDIC DIGIT ZERO}.0",
            "../../etc/passwd",
            "1" * 19 + ".0",
            "999999999999999999.0",
            "1.0",
            "0.2",
            "0.999999999",
            "0.0." + "0" * 16,
        ],
    )
    def test_a_cursor_that_was_not_handed_out_is_rejected(self, files: LogFiles, cursor: str) -> None:
        write(files, b"one\ntwo\n")
        with pytest.raises(InvalidCursorError):
            files.read(INVOCATION, cursor)

    @pytest.mark.parametrize("place", [Cursor(999_999_999), Cursor(1), Cursor(0, 2), Cursor(0, 999_999_999)])
    def test_nor_is_a_signed_one_of_a_place_that_is_not_there_read(
        self, files: LogFiles, place: Cursor
    ) -> None:
        write(files, b"one\ntwo\n")
        with pytest.raises(InvalidCursorError):
            files.read(INVOCATION, files.cursors.sign(ID, place))

    def test_a_cursor_is_good_for_its_log_and_key_only(self, files: LogFiles, tmp_path: Path) -> None:
        other = CheckedInvocation("iv_0000000000000002", "og_local")
        write(files, b"one\n")
        writer = files.writer(other.invocation_id)
        writer.say(LogProcess.Action, "one")
        writer.close()
        end = files.read(INVOCATION).last_read
        assert files.read(INVOCATION, end).last_read == end
        for reader, invocation in ((files, other), (LogFiles(tmp_path / "logs", "another"), INVOCATION)):
            with pytest.raises(InvalidCursorError):
                reader.read(invocation, end)
        same = LogFiles(tmp_path / "same", "secret"), LogFiles(tmp_path / "same", "secret")
        write(same[0], b"one\n")
        assert same[1].read(INVOCATION, same[0].read(INVOCATION).last_read).items == []

    def test_a_frame_that_an_action_wrote_is_never_read_as_one(self, files: LogFiles) -> None:
        forged = struct.pack(">HIqBQ", 0xA10F, 6, 0, 1, 0) + b"forged"
        write(files, b"x" + forged + b"\n")
        place = Cursor(23 + 1)  # behind the real frame's header and its first character
        with pytest.raises(InvalidCursorError):
            files.read(INVOCATION, str(place))
        # It takes the signature to get there.
        assert files.read(INVOCATION, files.cursors.sign(ID, place)).items[0].log == "forged"

    def test_no_place_makes_lines_that_were_not_written(self, files: LogFiles, path: Path) -> None:
        write(files, b"one\ntwo\n", b"three\n")
        written = ["one", "two", "three"]
        for offset in range(path.stat().st_size + 2):
            for line in range(3):
                try:
                    page = files.read(INVOCATION, files.cursors.sign(ID, Cursor(offset, line)))
                except InvalidCursorError:
                    continue
                read = [record.log for record in page.items]
                assert read == written[len(written) - len(read) :], (offset, line)

    def test_a_place_in_a_log_that_is_not_there_is_rejected(self, files: LogFiles) -> None:
        assert files.read(INVOCATION, files.cursors.sign(ID, Cursor())).items == []
        with pytest.raises(InvalidCursorError):
            files.read(INVOCATION, files.cursors.sign(ID, Cursor(26)))


class TestCrashes:
    def test_a_torn_tail_is_not_read_and_is_cut_off_before_more_is_written(
        self, files: LogFiles, path: Path
    ) -> None:
        write(files, b"one\n")
        whole = path.read_bytes()
        write(files, b"two\n")
        both = path.read_bytes()
        for length in range(len(whole), len(both)):
            path.write_bytes(both[:length])
            assert [record.log for record in records(files)] == ["one"], length
            write(files, b"again\n")
            assert [record.log for record in records(files)] == ["one", "again"], length

    @pytest.mark.parametrize("garbage", [bytes(4096), b"\xff" * 100, b"text of somebody else's\n"])
    def test_garbage_at_the_end_is_cut_off_before_more_is_written(
        self, files: LogFiles, path: Path, garbage: bytes
    ) -> None:
        write(files, b"one\n")
        with path.open("ab") as file:
            file.write(garbage)
        write(files, b"two\n")
        assert [record.log for record in records(files)] == ["one", "two"]

    def test_the_next_attempt_appends_and_its_long_lines_are_others(self, files: LogFiles) -> None:
        for _ in range(2):
            write(files, b"x" * 2 * logs.MAX_LINE)
        found = records(files)
        assert lines(found) == ["x" * 2 * logs.MAX_LINE] * 2

    def test_output_that_a_full_disk_rejects_is_written_in_order_later(
        self, files: LogFiles, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(files, b"one\n")
        writer = files.writer(ID)

        class NearlyFull:
            """A disk with room for ten more bytes."""

            def __init__(self, file: object) -> None:
                self.file = file
                self.room = 10

            def write(self, data: bytes) -> int:
                if not self.room:
                    raise OSError(28, "No space left on device")
                taken = self.file.write(data[: self.room])  # type: ignore[attr-defined]
                self.room -= taken
                return taken

            def __getattr__(self, name: str) -> object:
                return getattr(self.file, name)

        with monkeypatch.context() as patch:
            patch.setattr(writer, "_file", NearlyFull(writer._file))
            writer.say(LogProcess.Action, "two")
            assert not writer.flush()
            assert [record.log for record in records(files)] == ["one"]
        writer.say(LogProcess.Action, "three")
        writer.close()
        assert [record.log for record in records(files)] == ["one", "two", "three"]
