"""A result as text: contestants with their rates, then the questions with their bars."""

UNITS = {"%": lambda x: f"{x:.0%}", "x": lambda x: f"{x:.2f} x", "us": lambda x: f"{x:.0f} us"}


def text(result, judged):
    """Lines of one workload; without `judged`, sizes are too small for the bars and they are left out."""
    lines = ["", result.workload.title, f"  {'':<38}{'time':>12}{'rate':>16}{'share':>8}{'differs':>10}"]
    lines += [_contestant(result, c) for c in result.workload.contestants]
    lines.append(f"  {'':<54}{'measured':>10}" + (f"{'floor':>10}{'aim':>10}" if judged else ""))
    return "\n".join(lines + [_question(result, q, judged) for q in result.workload.questions])


def value_of(result, question):
    """The measured number, or None where a contestant is missing."""
    return question.value(result.seconds) if all(name in result.seconds for name in question.needs) else None


def missed(results):
    """(title, question, value) of every floor that was not reached."""
    asked = [(r.workload.title, q, value_of(r, q)) for r in results for q in r.workload.questions]
    return [(title, q, value) for title, q, value in asked if value is not None and q.misses(value)]


def unanswered(results):
    """(title, question) of every question with a bar that could not be asked."""
    return [(r.workload.title, q) for r in results for q in r.workload.questions
            if q.floor is not None and value_of(r, q) is None]


def summary(results):
    """Which floors are missed, and which could not be asked."""
    lines = [f"  {title}: {q.label}: {_number(q, value)}, floor {_number(q, q.floor)}"
             for title, q, value in missed(results)]
    lines = ["Floors missed:", *lines] if lines else ["No floor is missed."]
    open_ones = [f"  {title}: {q.label}" for title, q in unanswered(results)]
    return "\n".join(lines + (["Not measured:", *open_ones] if open_ones else []))


def _contestant(result, contestant):
    name = f"  {contestant.name:<38}"
    if contestant.name in result.missing:
        return f"{name}  not run: {result.missing[contestant.name]}"
    seconds = result.seconds[contestant.name]
    rate, share = contestant.rate(result.seconds), contestant.share(result.seconds)
    time = f"{seconds * 1e3:.2f} ms" if seconds > 1e-3 else f"{seconds * 1e6:.1f} us"
    speed = "" if rate is None else f"{rate / 1e9:.1f} {'GFLOP/s' if contestant.flop else 'GB/s'}"
    difference = result.differences.get(contestant.name)
    return (f"{name}{time:>12}{speed:>16}{'' if share is None else f'{share:.0%}':>8}"
            f"{'' if difference is None else f'{difference:.0e}':>10}").rstrip()


def _question(result, question, judged):
    value = value_of(result, question)
    bars = [_number(question, bar) if judged and bar is not None else "" for bar in (question.floor, question.aim)]
    verdict = "  missed" if judged and value is not None and question.misses(value) else ""
    return (f"  {question.label:<54}{'-' if value is None else _number(question, value):>10}{bars[0]:>10}{bars[1]:>10}"
            f"{verdict}").rstrip()


def _number(question, value):
    return UNITS[question.unit](value)
