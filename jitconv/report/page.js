"use strict";
const root = document.documentElement, $ = (id) => document.getElementById(id);
root.classList.add("scripted");
const rows = JSON.parse($("rows").textContent);
const digits = (x, n) => x === 0 ? "0" : Number(x.toPrecision(n)).toLocaleString("en", { minimumFractionDigits: Math.max(0, n - 1 - Math.floor(Math.log10(Number(x.toPrecision(n))))), maximumFractionDigits: 9 });
const seconds = (s, n = 3) => { const [unit, size] = [["s", 1], ["ms", 1e-3], ["µs", 1e-6], ["ns", 0]].find(([, u]) => s >= .9995 * u); return `${digits(s / (size || 1e-9), n)} ${unit}`; };
const ratio = (x) => digits(x, x >= 1 && x < 1.3 ? 3 : 2);
const make = (name, attributes = {}, words = "", space = null) => { const node = space ? document.createElementNS(space, name) : document.createElement(name); for (const [k, v] of Object.entries(attributes)) node.setAttribute(k, v); node.textContent = words; return node; };
const draw = (name, attributes, words = "") => make(name, attributes, words, "http://www.w3.org/2000/svg");
const samples = (row) => row.passes.flat();

// the data as files
const save = (name, words) => make("a", { href: URL.createObjectURL(new Blob([words])), download: name }).click();
const csv = () => {
  const heads = ["group", "work", "quantity", "variant", "threads", "seconds", "low", "high", "ratio", "ratio_low", "ratio_high", "bound_used", "flags", "again", "file", "command"];
  const quoted = (words) => `"${String(words ?? "").replaceAll('"', '""')}"`;
  return [heads.concat("passes"), ...rows.map((row) => heads.map((name) => [row[name]].flat().join(", ")).concat(row.passes.map((rounds) => rounds.join(" ")).join("; ")))].map((line) => line.map(quoted).join(",")).join("\n");
};
document.querySelectorAll("[data-save]").forEach((button) => button.addEventListener("click", () =>
  button.dataset.save === "csv" ? save("jitconv.csv", csv()) : save("jitconv.json", JSON.stringify({ kind: "jitconv-page", rows, ...JSON.parse($("others").textContent) }, null, 1))));
let closed = [];
addEventListener("beforeprint", () => { closed = [...document.querySelectorAll("details:not([open]):not(:has(pre))")]; closed.forEach((each) => { each.open = true; }); });
addEventListener("afterprint", () => closed.forEach((each) => { each.open = false; }));

// a strip plot of a row's rounds, and of torch's, each as per cent of its own median: noise side by side, whatever the ratio
function strips(lanes) {
  const width = 420, left = 104, height = 30 + 46 * lanes.length, off = (row) => (s) => 100 * (s / row.seconds - 1);
  const all = lanes.flatMap((row) => samples(row).map(off(row))), low = Math.min(...all, -1), high = Math.max(...all, 1);
  const x = (per) => left + 8 + (width - left - 30) * (per - low) / (high - low);
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Rounds, one dot each, in per cent of the time; a row of dots for each pass" });
  const tick = (per, anchor) => svg.append(draw("text", { x: x(per), y: height - 4, "text-anchor": anchor, class: "soft" }, per === 0 ? "time" : `${per < 0 ? "−" : "+"}${digits(Math.abs(per), 2)} %`));
  lanes.forEach((row, lane) => {
    const y = 24 + 46 * lane, mine = row.variant === "jit-tiled" ? "mine" : "soft", place = (s) => x(off(row)(s));
    svg.append(draw("line", { x1: left, x2: width - 10, y1: y, y2: y, class: "grid" }));
    svg.append(draw("text", { x: left - 8, y: y - 2, "text-anchor": "end", class: mine }, row.variant));
    svg.append(draw("text", { x: left - 8, y: y + 12, "text-anchor": "end" }, seconds(row.seconds)));
    if (row.low) svg.append(draw("rect", { x: Math.max(left, place(row.low)), width: Math.max(1.5, Math.min(width, place(row.high)) - Math.max(left, place(row.low))), y: y - 13, height: 26, class: "ci " + mine }));
    svg.append(draw("line", { x1: x(0), x2: x(0), y1: y - 15, y2: y + 15, class: "med" }));
    row.passes.forEach((rounds, pass) => rounds.forEach((s) => svg.append(draw("circle", { cx: place(s), cy: y + 5 * (pass % 5) - 5 * Math.min(1, row.passes.length - 1), r: 3.4, class: mine === "mine" ? "ours" : "rival" }))));
  });
  tick(0, "middle");
  if (x(0) - x(low) > 70) tick(low, "start");
  if (x(high) - x(0) > 70) tick(high, "end");
  return svg;
}

if ($("heat")) {
  const body = $("heat").tBodies[0], heads = [...$("heat").tHead.rows[0].cells], natural = [...body.rows], switches = ["quantity", "images", "cores"];
  const link = (row) => `row=${row.threads}t ${row.name}`.replaceAll(" ", "_"), wide = matchMedia("(min-width: 76rem)");
  const chosen = (name) => document.querySelector(`input[name=${name}]:checked`)?.value;
  let open = null, sorted = ["", 0];

  const close = () => { if (open) { open.button.setAttribute("aria-expanded", "false"); open.node.remove(); open = null; } };
  const show = (button, scroll, quiet) => {
    const same = open && open.button === button;
    close();
    if (same) return keep();
    const row = rows[button.dataset.i], box = make("div", { class: "detail" }), facts = make("dl"), command = make("div", { class: "command" });
    const rival = rows.find((r) => r.variant === "torch" && ["group", "work", "quantity", "threads"].every((name) => r[name] === row[name]));
    const places = (ratio(row.ratio ?? 1).split(".")[1] ?? "").length, apart = (x) => Number(x.toFixed(places)).toLocaleString("en", { minimumFractionDigits: places });
    const fact = (name, words) => { facts.append(make("dt", {}, name)); facts.append(make("dd", {}, words)); };
    fact("time", seconds(row.seconds) + (row.low ? `, 95 % ${seconds(row.low)} to ${seconds(row.high)}` : ", too few rounds for an interval"));
    if (row.ratio) fact("torch / this", `${ratio(row.ratio)}×${row.flags.length + (rival?.flags.length ?? 0) ? "‡" : ""}` + (row.ratio_low ? `, 95 % ${apart(row.ratio_low)} to ${apart(row.ratio_high)}` : ""));
    fact("rounds", `${samples(row).length} in ${row.passes.length} pass${row.passes.length > 1 ? "es" : ""}`);
    fact("bound used", row.variant === "torch" ? "the reference" : row.bound_used ? `${digits(100 * row.bound_used, 2)} %` : "none, bit for bit");
    if (row.flags.length) fact("flagged", row.flags.join(", "));
    const copy = make("button", { type: "button", class: "push" }, "Copy");
    copy.onclick = () => navigator.clipboard?.writeText(row.command).then(() => { copy.textContent = "Copied"; });
    command.append(make("code", {}, row.command), copy, make("a", { href: "#" + encodeURIComponent(link(row)) }, "Permalink"));
    box.append(make("h3", {}, `${row.work}, ${row.quantity}, ${row.variant}, ${row.threads === 1 ? "one core" : row.threads + " cores"}`), strips(rival && rival !== row ? [row, rival] : [row]), facts, command);
    let node = box;
    if (wide.matches) $("detail").append(box);
    else {
      const cell = make("td", { colspan: heads.length });
      node = make("tr", { class: "open" });
      cell.append(box); node.append(cell); button.closest("tr").after(node);
    }
    button.setAttribute("aria-expanded", "true");
    open = { button, node, row };
    if (scroll) button.scrollIntoView({ block: "center" });
    if (!quiet) keep();
  };
  body.addEventListener("click", (event) => { const button = event.target.closest("button[data-i]"); if (button) show(button); });
  addEventListener("keydown", (event) => { if (event.key === "Escape" && open) { const back = open.button; close(); back.focus(); keep(); } });

  // sort by a column: up, down, as it was
  const value = (line, at) => { const button = line.cells[at].querySelector("button"); return button ? rows[button.dataset.i].seconds : Infinity; };
  const sort = (name, way) => {
    close();
    sorted = [name, way];
    const at = heads.findIndex((th) => th.firstChild.dataset.sort === name), lines = [...natural];
    if (way) lines.sort((a, b) => way * (at ? value(a, at) - value(b, at) : a.cells[0].textContent.localeCompare(b.cells[0].textContent, "en", { numeric: true })));
    body.append(...lines);
    heads.forEach((th, i) => { th.removeAttribute("aria-sort"); if (way && i === at) th.setAttribute("aria-sort", way > 0 ? "ascending" : "descending"); });
  };
  $("heat").tHead.addEventListener("click", (event) => { const name = event.target.dataset?.sort; if (name !== undefined) { sort(name, sorted[0] === name ? (sorted[1] === 1 ? -1 : sorted[1] === -1 ? 0 : 1) : 1); keep(); } });
  const filter = () => { const words = $("filter").value.toLowerCase(); natural.forEach((line) => line.classList.toggle("filtered", !line.cells[0].textContent.toLowerCase().includes(words))); };
  $("filter").oninput = () => { filter(); keep(); };

  const boxes = [...document.querySelectorAll("[data-column]")];
  document.addEventListener("change", (event) => { if (switches.includes(event.target.name) || event.target.dataset.column) { close(); keep(); } });

  // state in the address
  const keep = () => {
    if (open) return history.replaceState(null, "", "#" + encodeURIComponent(link(open.row)));
    const state = new URLSearchParams(switches.map((name) => [name, chosen(name)]));
    if ($("filter").value) state.set("find", $("filter").value);
    if (sorted[1]) state.set("sort", `${sorted[1] < 0 ? "-" : ""}${sorted[0]}`);
    const out = boxes.filter((box) => !box.checked).map((box) => box.dataset.column);
    if (out.length) state.set("without", out.join(" "));
    history.replaceState(null, "", "#layers?" + state);
  };
  const pick = (name, value) => { const input = [...document.querySelectorAll(`input[name=${name}]`)].find((each) => each.value === value); if (input) input.checked = true; };
  const load = () => {
    const hash = decodeURIComponent(location.hash.slice(1));
    if (hash.startsWith("layers?")) {
      const state = new URLSearchParams(hash.slice(7)), out = (state.get("without") || "").split(" ");
      switches.forEach((name) => pick(name, state.get(name)));
      boxes.forEach((box) => { box.checked = !out.includes(box.dataset.column); });
      $("filter").value = state.get("find") || "";
      filter();
      if (state.has("sort")) sort(state.get("sort").replace(/^-/, ""), state.get("sort")[0] === "-" ? -1 : 1);
      return $("layers").scrollIntoView();
    }
    const at = hash.startsWith("row=") ? rows.findIndex((row) => link(row) === hash) : -1, button = at >= 0 && body.querySelector(`button[data-i="${at}"]`);
    if (!button) { if (wide.matches && !hash) { const first = natural.find((line) => line.offsetParent)?.querySelector("button[data-i]"); if (first && !open) show(first, false, true); } return; }
    const line = button.closest("tr").dataset;
    pick("quantity", line.q); pick("images", line.choice); pick("cores", line.t);
    if (!open || open.button !== button) show(button, true, true);
  };
  load();
  addEventListener("hashchange", load);
}
