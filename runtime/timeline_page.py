"""The page of a profile: one HTML file with the timeline as SVG, which needs nothing from outside.

1. A lane for each thread and for each worker's engine, over an axis in seconds; spans that are nested lie below what
   holds them.
2. Colours are those of Okabe and Ito, which people with any colour vision tell apart; waiting is a thin
   bar, and each bar says on being pointed at what it is.
3. Numbers come below: the stages, and the longest times that an engine waited, with the reasons.
4. The script makes the wheel zoom and dragging move. Without it the whole run is shown.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape

from unet_deploy.runtime.profile import Drawing
from unet_deploy.runtime.timeline import Span

GROUPS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    # by name: colour, what it is, the spans that have it
    "infer": ("#d55e00", "the network runs", ("infer",)),
    "read": ("#0072b2", "chunks are decoded, borders mirrored", ("read", "decode", "mirror")),
    "normalise": ("#f0e442", "grey values become the network's input", ("normalise", "gather")),
    "label": ("#009e73", "logits become labels and probabilities", ("label", "measure")),
    "write": (
        "#cc79a7",
        "compressed and written, with the pyramid",
        ("write", "write labels", "write probabilities", "write pyramid", "reduce", "pyramid"),
    ),
    "wait": ("#777777", "another block has the engine", ("wait",)),
    "prepare": (
        "#56b4e9",
        "opened, checked, compiled, measured",
        (
            *("open model", "open volume", "plan", "probe", "import", "open engine", "compile", "connect"),
            *("statistics", "prove", "create output"),
        ),
    ),
    "finish": ("#000000", "journal, objects, metadata", ("journal", "objects", "finish")),
    "hold": ("#d0d0d0", "the block has the engine", ("hold",)),
}
_GROUP_OF = {name: group for group, (_, _, names) in GROUPS.items() for name in names}
_OTHER = "hold"
WIDTH, LEFT = 1400, 130
_ROW, _LANE_GAP, _TOP = 16, 10, 26
_MOST_TICKS = 14

_STYLE = """
body{font:14px/1.4 system-ui,sans-serif;margin:24px;color:#111;background:#fff}
h1{font-size:20px}h2{font-size:16px;margin-top:28px}
table{border-collapse:collapse}td,th{padding:2px 12px 2px 0;text-align:left;vertical-align:top}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
.legend{display:flex;flex-wrap:wrap;gap:6px 20px;margin:10px 0;padding:0}
.legend li{list-style:none;display:flex;align-items:center;gap:6px}
.scroll{overflow-x:auto}svg{display:block}svg text{font:12px system-ui,sans-serif}
#bars rect:hover{stroke:#111;stroke-width:1.5;vector-effect:non-scaling-stroke}
.note{color:#444}
"""

_SCRIPT = """
(function(){
const bars=document.getElementById('bars'),axis=document.getElementById('axis');
const [,,end,height]=bars.getAttribute('viewBox').split(' ').map(Number);
const width=Number(bars.getAttribute('width')),left=Number(bars.getAttribute('x'));
let from=0,size=end,drag=null;
function show(){
 from=Math.max(0,Math.min(from,end-size));
 bars.setAttribute('viewBox',[from,0,size,height].join(' '));
 const raw=size/12,power=10**Math.floor(Math.log10(raw)),step=[1,2,5,10].map(k=>k*power).find(s=>s>=raw);
 axis.replaceChildren();
 for(let t=Math.ceil(from/step)*step;t<=from+size*1.000001;t+=step){
  const x=left+(t-from)/size*width,line=document.createElementNS(axis.namespaceURI,'path'),
   text=document.createElementNS(axis.namespaceURI,'text');
  line.setAttribute('d','M'+x+' 18V'+axis.dataset.height);line.setAttribute('stroke','#ccc');
  text.setAttribute('x',x);text.setAttribute('y',13);text.setAttribute('text-anchor','middle');
  text.textContent=Number(t.toPrecision(6))+' s';axis.append(line,text);
 }
}
const at=e=>(e.clientX-bars.ownerSVGElement.getBoundingClientRect().left-left)/width;
bars.ownerSVGElement.addEventListener('wheel',e=>{
 e.preventDefault();
 const share=Math.max(0,Math.min(1,at(e))),point=from+share*size;
 size=Math.max(end/1e5,Math.min(end,size*(e.deltaY>0?1.25:.8)));from=point-share*size;show();
},{passive:false});
bars.ownerSVGElement.addEventListener('pointerdown',e=>{drag=[at(e),from]});
window.addEventListener('pointermove',e=>{if(drag){from=drag[1]-(at(e)-drag[0])*size;show()}});
window.addEventListener('pointerup',()=>{drag=null});
bars.ownerSVGElement.addEventListener('dblclick',()=>{from=0;size=end;show()});
document.getElementById('how').hidden=false;
})();
"""


def make_page(drawing: Drawing) -> str:
    """Return the page of a profile."""
    profile = drawing.profile
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    left_out = (
        f"<p class='note'>{profile.n_left_out:,} of {profile.n_spans:,} spans, those in the middle of the run, are not "
        "drawn; the numbers are those of all.</p>"
        if profile.n_left_out
        else ""
    )
    part = "" if profile.part is None else f"<p class='note'><b>A part of the volume:</b> {escape(profile.part)}.</p>"
    return "\n".join(
        [
            "<!DOCTYPE html><!-- unet-deploy profile -->",
            f"<html lang='en'><head><meta charset='utf-8'><title>{escape(drawing.title)}</title>",
            f'<meta http-equiv="Content-Security-Policy" content="{policy}"><style>{_STYLE}</style></head><body>',
            f"<h1>{escape(drawing.title)}</h1>",
            part,
            _table(None, [*drawing.facts.items(), ("device", profile.device.describe(profile.run_s))]),
            _legend(drawing.spans),
            left_out,
            "<p class='note' id='how' hidden>Wheel: zoom. Drag: move. Double click: all.</p>",
            f"<div class='scroll'>{_draw(drawing)}</div>",
            *_numbers(drawing),
            f"<script>{_SCRIPT}</script></body></html>",
            "",
        ]
    )


def _legend(spans: Sequence[Span]) -> str:
    used = {_GROUP_OF.get(span.name, _OTHER) for span in spans}
    items = (
        f"<li><svg width='22' height='14'><rect y='{5 if group == 'wait' else 0}' width='22' "
        f"height='{5 if group == 'wait' else 14}' fill='{GROUPS[group][0]}'/></svg>"
        f"<span><b>{escape(', '.join(names))}</b>: {escape(words)}</span></li>"
        for group, (_, words, names) in GROUPS.items()
        if group in used
    )
    return f"<ul class='legend'>{''.join(items)}</ul>"


def _draw(drawing: Drawing) -> str:
    lanes = drawing.lanes
    by_lane: dict[tuple[str, str], list[Span]] = {lane: [] for lane in lanes}
    for span in drawing.spans:
        by_lane[span.worker, span.thread].append(span)
    end = max([drawing.profile.run_s, *(span.stop_s for span in drawing.spans)])
    names: list[str] = []
    bars: list[str] = []
    y = _TOP
    for lane, name in lanes.items():
        worker, _ = lane
        is_own = worker == drawing.own_worker
        rows = 0
        for span, depth in nested(by_lane[lane]):
            rows = max(rows, depth + 1)
            bars.append(_bar(span, y - _TOP + depth * _ROW))
        title = "this process" if is_own else worker
        names.append(
            f"<text x='{LEFT - 8}' y='{y + 12}' text-anchor='end'>{escape(name)}<title>{escape(title)}</title></text>"
        )
        y += rows * _ROW + _LANE_GAP
    height, width = y - _TOP, WIDTH - LEFT - 20
    return "\n".join(
        [
            f"<svg width='{WIDTH}' height='{y}' role='img' aria-label='timeline'>",
            f"<g id='axis' data-height='{y}'>{''.join(_axis(end, width, y))}</g>",
            *names,
            f"<svg id='bars' x='{LEFT}' y='{_TOP}' width='{width}' height='{height}' "
            f"viewBox='0 0 {end:.6f} {height}' preserveAspectRatio='none'>",
            *bars,
            "</svg></svg>",
        ]
    )


def nested(spans: Sequence[Span]) -> Iterator[tuple[Span, int]]:
    """Yield the spans of a lane with how many others hold them, from left to right."""
    holding: list[Span] = []
    for span in sorted(spans, key=lambda span: (span.start_s, -span.stop_s)):
        while holding and holding[-1].stop_s <= span.start_s:
            holding.pop()
        yield span, len(holding)
        holding.append(span)


def _bar(span: Span, y: float) -> str:
    block = "" if span.block is None else f", block {span.block}"
    note = f", {span.note}" if span.note else ""
    words = f"{span.name}{block}{note}: {span.seconds * 1e3:.2f} ms from {span.start_s:.4f} s"
    group = _GROUP_OF.get(span.name, _OTHER)
    height, down = (_ROW // 3, _ROW // 3) if group == "wait" else (_ROW - 2, 0)
    return (
        f"<rect x='{span.start_s:.6f}' y='{y + down}' width='{max(span.seconds, 0):.6f}' height='{height}' "
        f"fill='{GROUPS[group][0]}'><title>{escape(words)}</title></rect>"
    )


def _axis(end: float, width: float, height: float) -> Iterator[str]:
    step = choose_step(end)
    for i in range(int(end / step) + 1):
        x = LEFT + i * step / end * width
        yield (
            f"<path d='M{x:.1f} 18V{height}' stroke='#ccc'/>"
            f"<text x='{x:.1f}' y='13' text-anchor='middle'>{i * step:g} s</text>"
        )


def choose_step(end: float) -> float:
    """Return the distance of ticks on an axis of so many s: 1, 2 or 5 times a power of ten.

    >>> choose_step(12.0), choose_step(0.5)
    (1.0, 0.05)
    """
    raw = end / _MOST_TICKS
    power = 10.0 ** math.floor(math.log10(raw))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)


def _numbers(drawing: Drawing) -> Iterator[str]:
    profile = drawing.profile
    threads = sum(stage.seconds for stage in profile.stages) or 1.0
    yield "<h2>Stages</h2><p class='note'>Of all threads together; what is nested in a span is not counted with it.</p>"
    yield _table(
        ("stage", "seconds", "share", "times"),
        [
            (stage.name, f"{stage.seconds:.3f}", f"{stage.seconds / threads:.1%}", f"{stage.count:,}")
            for stage in profile.stages
        ],
    )
    gaps = profile.device.gaps
    if gaps:
        yield "<h2>The longest times that an engine waited</h2>"
        yield _table(
            ("from s", "seconds", "for"),
            [
                (
                    f"{gap.start_s:.3f}",
                    f"{gap.seconds:.4f}",
                    ", ".join(f"{cause} {seconds:.4f}" for cause, seconds in gap.causes.items()),
                )
                for gap in gaps
            ],
        )


def _table(head: Sequence[str] | None, rows: Sequence[Sequence[str]]) -> str:
    def cells(row: Sequence[str], tag: str) -> str:
        numbers = [bool(head) and i > 0 for i in range(len(row))]
        return "".join(
            f"<{tag}{' class=n' if is_number else ''}>{escape(text)}</{tag}>"
            for text, is_number in zip(row, numbers, strict=True)
        )

    top = "" if head is None else f"<tr>{cells(head, 'th')}</tr>"
    below = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f"<table>{top}{below}</table>"
