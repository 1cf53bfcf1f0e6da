// The fixed parts of the report page: its style, and the script that shows values under the
// pointer.
#pragma once

#include <string_view>

namespace lora::train {

constexpr std::string_view kReportStyle = R"css(
:root {
  color-scheme: light dark;
  --page: #f5f6f8; --panel: #ffffff; --edge: #e1e4e9; --text: #1b2027; --faint: #667080;
  --curve: #2b62d9; --mark: #d4570a; --bad: #c92a3a; --good: #1a7f4b; --grid: #e9ecf0;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #101317; --panel: #191d23; --edge: #2b313a; --text: #e4e8ed; --faint: #949fad;
    --curve: #76a4ff; --mark: #ffa154; --bad: #ff7480; --good: #5cc98f; --grid: #272d35;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--text); line-height: 1.55; font-size: 15px;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "PingFang SC",
    "Hiragino Sans GB", "Microsoft YaHei", "Noto Sans CJK SC", "Source Han Sans SC", sans-serif;
}
main { max-width: 1160px; margin: 0 auto; padding: 32px 24px 48px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 40px 0 14px; }
small, .faint { color: var(--faint); font-size: 13px; }
.over { color: var(--faint); font-size: 13px; letter-spacing: .04em; text-transform: uppercase; margin: 0 0 4px; }
.panel, .chart, .card { background: var(--panel); border: 1px solid var(--edge); border-radius: 10px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(230px, 1fr)); gap: 14px; margin-top: 24px; }
.card { padding: 14px 16px; min-width: 0; }
.card .label { color: var(--faint); font-size: 13px; }
.card .value { font-size: 21px; font-weight: 600; line-height: 1.35; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.card .value.long { font-size: 16px; }
.card .note { color: var(--faint); font-size: 13px; }
.good { color: var(--good) !important; }
.bad { color: var(--bad) !important; }
.charts { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 14px; }
.chart { margin: 0; padding: 14px 20px 10px 16px; min-width: 0; }
.chart.wide { grid-column: 1 / -1; }
figcaption { display: flex; flex-wrap: wrap; gap: 2px 8px; align-items: baseline; margin-bottom: 14px; }
.legend { margin-left: auto; display: flex; flex-wrap: wrap; gap: 2px 16px; font-size: 13px; color: var(--faint); }
.key::before { content: ""; display: inline-block; width: 16px; height: 0; margin-right: 6px; vertical-align: middle; border-top: 3px solid var(--curve); border-radius: 2px; }
.key.raw::before { opacity: .4; border-top-width: 2px; }
.key.mark::before { width: 9px; height: 9px; border: 0; border-radius: 50%; background: var(--mark); }
.key.skipped::before { width: 0; height: 12px; border: 0; border-left: 2px solid var(--bad); }
.plot { position: relative; height: 190px; margin: 0 6px 46px 58px; }
.wide .plot { height: 290px; }
.plot.empty { display: flex; align-items: center; justify-content: center; margin: 0 0 16px; color: var(--faint); border: 1px dashed var(--edge); border-radius: 6px; }
.plot svg { position: absolute; inset: 0; width: 100%; height: 100%; overflow: visible; }
.plot path { fill: none; vector-effect: non-scaling-stroke; stroke-linejoin: round; stroke-linecap: round; }
path.grid { stroke: var(--grid); stroke-width: 1px; }
path.axis { stroke: var(--faint); stroke-width: 1px; }
path.line { stroke: var(--curve); stroke-width: 2px; }
path.raw { stroke: var(--curve); stroke-width: 1.2px; opacity: .4; }
path.joined { stroke: var(--mark); stroke-width: 1.5px; stroke-dasharray: 5 4; opacity: .7; }
path.mark { stroke: var(--mark); stroke-width: 9px; }
path.lone { stroke: var(--curve); stroke-width: 6px; }
path.skipped { stroke: var(--bad); stroke-width: 2px; stroke-linecap: butt; }
.plot i { position: absolute; font-style: normal; font-size: 12px; line-height: 1; color: var(--faint); white-space: nowrap; font-variant-numeric: tabular-nums; }
.plot i.y { right: 100%; margin-right: 9px; transform: translateY(-50%); }
.plot i.x { top: 100%; margin-top: 8px; transform: translateX(-50%); }
.plot i.below { top: 100%; left: 50%; margin-top: 27px; transform: translateX(-50%); }
.plot .pointer { position: absolute; top: 0; bottom: 0; width: 0; border-left: 1px solid var(--faint); pointer-events: none; }
.plot .dot { position: absolute; width: 9px; height: 9px; margin: -4.5px 0 0 -4.5px; border-radius: 50%; background: var(--curve); border: 2px solid var(--panel); pointer-events: none; }
.plot .tip { position: absolute; top: -6px; transform: translate(-50%, -50%); padding: 2px 9px; border-radius: 6px; background: var(--text); color: var(--panel); font-size: 12px; white-space: nowrap; pointer-events: none; font-variant-numeric: tabular-nums; }
table { width: 100%; border-collapse: collapse; }
th, td { text-align: left; vertical-align: top; padding: 11px 16px; border-top: 1px solid var(--edge); overflow-wrap: anywhere; }
tr:first-child > * { border-top: 0; }
th { font-weight: 600; font-size: 13px; color: var(--faint); }
.samples table { table-layout: fixed; }
.samples td { white-space: pre-wrap; }
.samples td.prompt { color: var(--faint); }
.samples td:empty::after { content: "(empty)"; color: var(--faint); font-style: italic; }
.ranks { overflow-x: auto; }
.ranks table { font-size: 11px; }
.ranks th, .ranks td { padding: 1px 4px; text-align: center; font-variant-numeric: tabular-nums; }
.ranks tbody th { text-align: left; white-space: nowrap; }
.pairs th { width: 220px; white-space: nowrap; }
.pairs th, .pairs td { vertical-align: baseline; }
.pairs td { font-variant-numeric: tabular-nums; }
pre { margin: 0; padding: 14px 18px; overflow: auto; max-height: 560px; font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", "Noto Sans Mono CJK SC", monospace; tab-size: 2; }
footer { margin-top: 36px; color: var(--faint); font-size: 13px; }
@media (max-width: 760px) {
  main { padding: 20px 14px 36px; }
  .charts { grid-template-columns: minmax(0, 1fr); }
  .chart { padding: 12px 14px 8px 10px; }
  .wide .plot { height: 230px; }
  .legend { margin-left: 0; width: 100%; }
  .cards { grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 10px; }
  .card .value { font-size: 19px; }
  .samples thead { display: none; }
  .samples tr, .samples td { display: block; border: 0; }
  .samples tr + tr { border-top: 1px solid var(--edge); }
  .samples td { padding: 8px 14px; }
  .samples td::before { content: attr(data-label); display: block; font-size: 12px; font-weight: 600; color: var(--faint); }
  .pairs th { width: 40%; white-space: normal; }
}
@media print {
  body { background: none; }
  .chart, .card, tr { break-inside: avoid; }
  pre { max-height: none; white-space: pre-wrap; }
}
)css";

constexpr std::string_view kReportScript = R"js(
for (const plot of document.querySelectorAll('.plot[data-points*=":"]')) {
  const [left, right, bottom, top] = plot.dataset.range.split(' ').map(Number);
  const points = plot.dataset.points.split(' ').map(text => text.split(':'));
  const shown = ['pointer', 'dot', 'tip'].map(name => {
    const element = document.createElement('div');
    element.className = name;
    element.hidden = true;
    return plot.appendChild(element);
  });
  plot.addEventListener('pointermove', event => {
    const box = plot.getBoundingClientRect();
    const step = left + (right - left) * (event.clientX - box.left) / box.width;
    let nearest = points[0];
    for (const point of points) {
      if (Math.abs(point[0] - step) < Math.abs(nearest[0] - step)) nearest = point;
    }
    const x = 100 * (nearest[0] - left) / (right - left) + '%';
    const [pointer, dot, tip] = shown;
    pointer.style.left = dot.style.left = tip.style.left = x;
    dot.style.top = 100 * (top - nearest[1]) / (top - bottom) + '%';
    tip.textContent = 'step ' + nearest[0] + ': ' + nearest[1];
    for (const element of shown) element.hidden = false;
  });
  plot.addEventListener('pointerleave', () => {
    for (const element of shown) element.hidden = true;
  });
}
)js";

}  // namespace lora::train
