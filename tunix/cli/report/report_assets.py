"""Style and script of the report, as text that goes into the page."""

STYLE = """
:root { --ink: #1c2330; --soft: #5d6878; --line: #dfe4ea; --paper: #fff; --back: #f5f7f9;
  --good: #1a7f4b; --bad: #b3352b;
  --c0: #2563b8; --c1: #d9822b; --c2: #1a7f4b; --c3: #b3352b; --c4: #7a4fb5; --c5: #4a8a9a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ee; --soft: #98a3b3; --line: #323a46;
  --paper: #1a1f27; --back: #12161c; --good: #55c78d; --bad: #ee7a6f; --c0: #6aa5f0;
  --c1: #efa75e; --c2: #55c78d; --c3: #ee7a6f; --c4: #b091e6; --c5: #7cc0d0; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1500px; margin: 0 auto; padding: 24px; }
h1 { font-size: 24px; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 32px 0 8px; }
p, .note { color: var(--soft); margin: 4px 0 12px; }
.cards, .charts { display: grid; gap: 12px; }
.cards { grid-template-columns: repeat(auto-fill, minmax(170px, 1fr)); margin-top: 16px; }
.charts { grid-template-columns: repeat(auto-fill, minmax(min(360px, 100%), 1fr)); }
.card, figure, .alarm, table, details { background: var(--paper); border: 1px solid var(--line);
  border-radius: 8px; }
.card { padding: 10px 14px; } .card b { display: block; font-size: 20px; }
.card span { color: var(--soft); font-size: 13px; }
figure { margin: 0; padding: 10px 12px; } figcaption { font-weight: 600; }
svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--soft); font-size: 11px; }
polyline { fill: none; stroke-width: 1.6; stroke-linejoin: round; }
.grid { stroke: var(--line); } .mark { stroke: var(--bad); stroke-dasharray: 3 3; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 14px; font-size: 12px; }
.alarm { padding: 8px 14px; margin-bottom: 8px; border-left: 4px solid var(--bad); }
details { padding: 8px 14px; margin-top: 12px; } summary { cursor: pointer; }
pre { overflow-x: auto; font-size: 12.5px; }
input { font: inherit; padding: 6px 10px; width: 320px; max-width: 100%; margin-bottom: 8px;
  color: inherit; background: var(--paper); border: 1px solid var(--line); border-radius: 6px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13px; }
th, td { padding: 6px 10px; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
th { white-space: nowrap; cursor: pointer; user-select: none; background: var(--back); }
th[aria-sort=ascending]::after { content: " \\25b2"; }
th[aria-sort=descending]::after { content: " \\25bc"; }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
td.t { white-space: pre-wrap; overflow-wrap: anywhere; min-width: 240px; max-width: 560px; }
td.t div { max-height: 15em; overflow-y: auto; unicode-bidi: plaintext; }
td.up { color: var(--good); } td.down { color: var(--bad); }
""" + "".join(
    f".c{i} {{ stroke: var(--c{i}); color: var(--c{i}); }} circle.c{i} {{ fill: var(--c{i}); }}\n"
    for i in range(6)
)

SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const sort = (head, column) => {
    const sorted = head.getAttribute("aria-sort");
    const isNumber = [...body.rows].some(row => "v" in row.cells[column].dataset);
    const down = sorted === null ? isNumber : sorted === "ascending";
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = row => {
      const cell = row.cells[column];
      return "v" in cell.dataset ? Number(cell.dataset.v) : cell.textContent;
    };
    const order = (a, b) => {
      const x = value(a), y = value(b);
      if (typeof x !== typeof y) return typeof x === "number" ? -1 : 1;
      const sign = x < y ? -1 : x > y ? 1 : 0;
      return down ? -sign : sign;
    };
    body.append(...[...body.rows].sort(order));
  };
  heads.forEach((head, column) => {
    head.tabIndex = 0;
    head.addEventListener("click", () => sort(head, column));
    head.addEventListener("keydown", event => {
      if (event.key === "Enter") sort(head, column);
    });
  });
}
for (const input of document.querySelectorAll("input[data-for]")) {
  const rows = document.getElementById(input.dataset.for).tBodies[0].rows;
  input.addEventListener("input", () => {
    const wanted = input.value.toLowerCase();
    for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
  });
}
"""
