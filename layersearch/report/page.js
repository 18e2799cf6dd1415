"use strict";
// Draws the figures of a page from its JSON. Text from data reaches the document as text only, and figures escaped.
(async () => {
  const page = JSON.parse(document.getElementById("data").textContent);
  const runs = page.runs;
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const one = (selector, root = document) => root.querySelector(selector);
  const esc = (text) => String(text).replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
  const places = (width) => (width ? Math.min(5, Math.max(2, 1 - Math.floor(Math.log10(width)))) : 4);
  const percent = (share) => (100 * share).toFixed(1) + "%";
  const bytes = (n) => {
    for (const unit of ["B", "KiB", "MiB", "GiB"]) {
      if (n < 1024) return `${+n.toPrecision(3)} ${unit}`;
      n /= 1024;
    }
    return `${+n.toPrecision(3)} TiB`;
  };
  const ci = (found, sign = false) => {
    if (!found) return "";
    const half = found.high === null ? null : found.high - found.mean;
    const digits = places(half);
    return (sign && found.mean >= 0 ? "+" : "") + found.mean.toFixed(digits) + (half === null ? "" : ` ± ${half.toFixed(digits)}`);
  };
  const node = (tag, text, parent, attributes = {}) => {
    const made = document.createElement(tag);
    if (text !== null) made.textContent = text;
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (parent) parent.append(made);
    return made;
  };
  const short = (text, length = 34) => (text.length > length ? text.slice(0, length - 1) + "…" : text);

  // Copying -----------------------------------------------------------------------------------------------------------
  const toast = document.getElementById("toast");
  let fading = 0;
  const say = (text) => {
    toast.textContent = text;
    toast.classList.add("on");
    clearTimeout(fading);
    fading = setTimeout(() => toast.classList.remove("on"), 2600);
  };
  const copy = async (text, what) => {
    let done = true;
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const area = node("textarea", text, document.body, { readonly: "", style: "position:fixed;opacity:0" });
      const held = document.activeElement;
      area.select();
      done = document.execCommand("copy");
      area.remove();
      if (held) held.focus({ preventScroll: true });
    }
    say(done ? `Copied ${what}` : "The browser refused to copy; select the text");
  };

  // The picture of a schedule -----------------------------------------------------------------------------------------
  const draw = (name, attributes, parent, text) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    parent.append(made);
    return made;
  };
  const colors = { full: "var(--full)", window: "var(--near)", block: "var(--block)", strided: "var(--third)", fixed: "var(--third)", bigbird: "var(--third)", memory: "var(--block)" };
  function picture(run, schedule) {
    const row = Math.max(5, Math.min(16, Math.floor(470 / schedule.layers.length)));
    const [left, right, width] = [26, 128, 460];
    const keys = width - left - right, top = 4, height = top + row * schedule.layers.length + 22;
    const scale = (at) => left + (keys * at) / run.seq_len;
    const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" }, document.createElement("div"));
    svg.setAttribute("aria-label", `${schedule.layers.length} layers, bottom first: ${schedule.text}`);
    const bar = (from, to, y, fill) => {
      const wide = Math.max(2, scale(to) - scale(from));
      draw("rect", { x: Math.min(scale(from), left + keys - wide), y: y + 1, width: wide, height: row - 2, fill }, svg);
    };
    schedule.layers.forEach((number, layer) => {
      const span = run.spans[number], y = top + row * (schedule.layers.length - 1 - layer);
      const group = draw("rect", { x: left, y: y + 1, width: keys, height: row - 2, fill: "var(--track)" }, svg);
      draw("title", {}, group, `layer ${layer}: ${span.text}, ${percent(span.share)} of a full layer's FLOPs`);
      for (const [from, to] of span.keys) bar(from, to, y, colors[span.kind]);
      const skip = row < 10 ? Math.ceil(11 / row) : 1;
      if (layer % skip === 0) draw("text", { x: left - 5, y: y + row / 2 + 3.5, "text-anchor": "end" }, svg, layer);
      if (skip === 1) draw("text", { x: left + keys + 6, y: y + row / 2 + 3.5 }, svg, short(span.text, 21));
    });
    const base = top + row * schedule.layers.length;
    for (const part of [0, 0.5, 1])
      draw("text", { x: left + keys * part, y: base + 14, "text-anchor": part === 0 ? "start" : part === 1 ? "end" : "middle" },
        svg, part === 0 ? "key 1" : Math.round(run.seq_len * part).toLocaleString("en"));
    return svg;
  }
  function show(at, number, copied = false) {
    const run = runs[at], schedule = run.schedules[number], box = one(`.picture[data-run="${at}"]`);
    const wins = number === run.winner, title = one(".picture-title", box), chosen = one(".chosen", box);
    title.textContent = wins && run.kind === "conversion" ? "The schedule" : wins ? (run.finished ? "The winner" : "The best so far") : `Shown: ${short(schedule.compact, 60)}`;
    const layers = one(".layers", box);
    layers.replaceChildren(picture(run, schedule));
    const legend = node("div", null, layers, { class: "legend" });
    for (const kind of new Set(schedule.layers.map((span) => run.spans[span].kind))) {
      const label = node("span", null, legend);
      node("i", null, label).style.background = colors[kind];
      label.append(kind + (kind === "full" ? ` (l = ${schedule.n_full})` : ""));
    }
    chosen.replaceChildren();
    node("p", `Cost ${percent(schedule.cost)} of all-full` + (schedule.kv === null ? "." : `, KV cache ${bytes(schedule.kv)}.`), chosen);
    for (const [text, what] of [[schedule.text, "the schedule"], [schedule.export, "the command"]]) {
      const line = node("div", null, chosen, { class: "copyable" });
      node("pre", text, line, { tabindex: 0, "aria-label": what });
      node("button", "Copy", line, { type: "button", class: "copy", "aria-label": `Copy ${what}` });
    }
    if (!wins && run.winner !== null)
      node("button", "Back to the winner", chosen, { type: "button" }).addEventListener("click", () => show(at, run.winner));
    if (copied) copy(`${schedule.text}\n${schedule.export}`, "the schedule and its command");
  }

  // Figures -----------------------------------------------------------------------------------------------------------
  const measures = {
    text_to_full: ["text loss to all-full", "text loss minus all-full's, nats", (p) => p.text_to_full],
    to_full: ["loss to all-full", "loss minus all-full's, nats", (p) => p.to_full],
    loss: ["loss", "loss, nats", (p) => p.loss || (p.search_loss === null ? null : { mean: p.search_loss, high: null })],
    digits: ["digits right", "share of hidden digits right", (p) => p.digits],
  };
  const sizes = { cost: ["attention FLOPs", "attention FLOPs, share of all-full"], kv: ["KV cache", "KV cache, bytes"] };
  const axes = runs.map((run) => {
    const held = run.points.some((p) => p.text_to_full), few = run.points.filter((p) => p.to_full).length > 1;
    return { x: "cost", y: held ? "text_to_full" : few && run.frontier_of === "confirm" ? "to_full" : "loss", mark: run.budget };
  });
  const layout = (box, more) => {
    const printing = document.documentElement.classList.contains("printing");
    const fixed = printing ? { width: box.clientWidth, height: box.clientHeight, autosize: false } : { autosize: true };
    const axis = { gridcolor: css("line"), zerolinecolor: css("soft"), zerolinewidth: 1, linecolor: css("line"), automargin: true,
      title: { standoff: 10 } };
    const base = { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", ...fixed,
      font: { color: css("ink"), size: printing ? 9 : 12, family: getComputedStyle(document.body).fontFamily },
      margin: { l: 56, r: 14, t: 10, b: 46 }, hovermode: "closest", hoverdistance: 30,
      hoverlabel: { align: "left", bgcolor: css("card"), bordercolor: css("soft"), font: { color: css("ink"), size: 12 } },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: css("soft"), activecolor: css("ink") },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { size: 11.5 } } };
    const made = { ...base, ...more };
    made.xaxis = { ...axis, ...more.xaxis };
    made.yaxis = { ...axis, ...more.yaxis };
    return made;
  };
  const config = { displaylogo: false, responsive: true, modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]] };
  const bars = (found, color) => ({ type: "data", array: found.map((v) => (v.high === null ? 0 : v.high - v.mean)), thickness: 1.2, width: 3,
    color: color && css(color) });
  const name = (run, p) => (p.names.length ? p.names.join(", ") : run.schedules[p.schedule].compact);
  function hover(run, p) {
    const s = run.schedules[p.schedule];
    const lines = [`<b>${esc(short(name(run, p), 70))}</b>`];
    if (p.names.length) lines.push(esc(short(s.compact, 70)));
    lines.push(`cost ${percent(s.cost)}, l = ${s.n_full}, KV cache ${bytes(s.kv)}`);
    if (p.loss) lines.push(`loss ${ci(p.loss)} nats (${p.loss.n} ${run.unit}${p.loss.n > 1 ? "s" : ""})`);
    else if (p.search_loss !== null) lines.push(`loss ${p.search_loss.toFixed(4)} nats (one seed of the search)`);
    if (p.to_full) lines.push(`to all-full ${ci(p.to_full, true)} nats`);
    if (p.text_to_full) lines.push(`text loss to all-full ${ci(p.text_to_full, true)} nats`);
    if (p.digits) lines.push(`digits right ${ci(p.digits)}`);
    return lines.join("<br>");
  }
  const groups = [
    ["search only", (run, p) => !p.loss, "base", "circle-open", 6],
    ["baseline", (run, p) => p.loss && p.role === "baseline", "base", "square", 8],
    ["proposed", (run, p) => p.loss && p.role === "proposed", "full", "circle", 9],
    ["all-full", (run, p) => p.loss && p.role === "full", "ink", "diamond", 10],
  ];
  const clip = (values) => {
    // Losses far above the others are named below the figure, not drawn; a double click shows them.
    const sorted = [...values].sort((a, b) => a - b), middle = sorted[Math.floor(sorted.length / 2)] - sorted[0];
    return sorted.length < 5 || !middle ? Infinity : sorted[0] + 4 * middle;
  };
  const range = (low, high) => [low - 0.06 * (high - low || 1), high + 0.08 * (high - low || 1)];
  const kinds = {
    frontier(at) {
      const run = runs[at], axis = axes[at], [, title, value] = measures[axis.y];
      const shown = run.points.filter((p) => value(p)), x = (p) => run.schedules[p.schedule][axis.x];
      const most = axis.y === "digits" ? Infinity : clip(shown.map((p) => value(p).mean)), traces = [];
      const drawn = shown.filter((p) => value(p).mean <= most), cut = shown.filter((p) => value(p).mean > most);
      const front = drawn.filter((p) => run.frontier.includes(p.schedule) && value(p)).sort((a, b) => x(a) - x(b));
      if (front.length > 1 && axis.y !== "digits")
        traces.push({ x: front.map(x), y: front.map((p) => value(p).mean), mode: "lines", name: "frontier", hoverinfo: "skip",
          line: { shape: "hv", color: css("full"), width: 1.4, dash: "dot" } });
      for (const [label, test, color, symbol, size] of groups) {
        const some = drawn.filter((p) => p.schedule !== run.winner && test(run, p));
        if (some.length)
          traces.push({ x: some.map(x), y: some.map((p) => value(p).mean), error_y: bars(some.map(value), color === "base" ? "faint" : color), mode: "markers", name: label,
            text: some.map((p) => hover(run, p)), hovertemplate: "%{text}<extra></extra>", customdata: some.map((p) => p.schedule),
            marker: { color: css(color), symbol, size, line: { width: symbol.includes("open") ? 1.5 : 0.7, color: symbol.includes("open") ? css(color) : css("back") } } });
      }
      const won = drawn.find((p) => p.schedule === run.winner);
      if (won) {
        // Of points that lie on each other the smallest is hovered: the winner's dot, not its ring.
        const at = { x: [x(won)], y: [value(won).mean] }, label = run.finished ? "winner" : "best so far";
        traces.push({ ...at, mode: "markers", name: label, hoverinfo: "skip", legendgroup: "won",
          marker: { symbol: "circle-open", size: 18, color: css("win"), line: { width: 2.5, color: css("win") } } });
        traces.push({ ...at, error_y: bars([value(won)], "win"), mode: "markers", name: label, text: [hover(run, won)], hovertemplate: "%{text}<extra></extra>",
          customdata: [won.schedule], showlegend: false, legendgroup: "won", marker: { symbol: "circle", size: 7, color: css("win") } });
      }
      one(`.clipped[data-run="${at}"]`).textContent = cut.length
        ? "Above the figure: " + cut.map((p) => `${name(run, p)} (${ci(value(p), axis.y !== "loss")})`).join("; ") + "." : "";
      const ends = drawn.flatMap((p) => [value(p).high ?? value(p).mean, 2 * value(p).mean - (value(p).high ?? value(p).mean)]);
      const xs = drawn.map(x);
      const lines = axis.x === "cost" && axis.mark < 1 ? [{ type: "line", xref: "x", yref: "paper", x0: axis.mark, x1: axis.mark, y0: 0, y1: 1,
        line: { color: css("soft"), width: 1.2, dash: "dash" } }] : [];
      const notes = lines.length ? [{ x: axis.mark, y: 1, yref: "paper", text: `budget ${percent(axis.mark)}`, showarrow: false, yanchor: "top",
        xanchor: axis.mark > 0.8 * Math.max(...xs) ? "right" : "left", xshift: axis.mark > 0.8 * Math.max(...xs) ? -4 : 4, font: { size: 11, color: css("soft") } }] : [];
      return { traces, shown: drawn.length > 0, layout: { shapes: lines, annotations: notes, hovermode: "closest",
        xaxis: { title: { text: sizes[axis.x][1], standoff: 10 }, tickformat: axis.x === "cost" ? ".0%" : "~s", range: range(Math.min(...xs), Math.max(...xs)) },
        yaxis: { title: { text: title, standoff: 8 }, range: axis.y === "digits" ? [-0.03, 1.05] : range(Math.min(...ends), Math.max(...ends)) } } };
    },
    training(at) {
      const { steps, original, evaluations } = runs[at].training, traces = [];
      if (steps.length)
        traces.push({ x: steps.map((s) => s[0]), y: steps.map((s) => s[1]), mode: "lines", name: "training texts", line: { color: css("faint"), width: 1.2 }, hovertemplate: "step %{x}: %{y:.4f} nats<extra>training</extra>" });
      if (evaluations.length)
        traces.push({ x: evaluations.map((e) => e[0]), y: evaluations.map((e) => e[1]), mode: "lines+markers", name: "validation, with the schedule", text: evaluations.map((e) => esc(e[2])), line: { color: css("win"), width: 2 },
          marker: { size: 8, color: css("win") }, hovertemplate: "step %{x}: %{y:.4f} nats<extra>%{text}</extra>" });
      const line = original === null ? {} : { shapes: [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: original, y1: original, line: { color: css("ink"), width: 1.5, dash: "dash" } }],
        annotations: [{ xref: "paper", x: 1, y: original, text: `original ${original.toFixed(4)}`, showarrow: false, xanchor: "right", yanchor: "bottom", font: { size: 11, color: css("ink") } }] };
      if (original !== null) traces.push({ x: [0], y: [original], mode: "markers", name: "original", marker: { symbol: "diamond", size: 9, color: css("ink") }, hovertemplate: "original: %{y:.4f} nats<extra></extra>" });
      return { traces, shown: traces.length > 0, layout: { ...line, xaxis: { title: { text: "optimizer step", standoff: 8 } }, yaxis: { title: { text: "loss, nats", standoff: 8 } } } };
    },
    compare() {
      const looks = [["full", "circle"], ["win", "square"], ["block", "diamond"], ["third", "triangle-up"], ["near", "star"], ["base", "x"]];
      const traces = runs.map((run, at) => {
        const some = run.points.filter((p) => (p.text_to_full || p.to_full) && p.role !== "full"), value = (p) => p.text_to_full || p.to_full;
        const most = clip(some.map((p) => value(p).mean)), kept = some.filter((p) => value(p).mean <= most);
        const [color, symbol] = looks[at % looks.length];
        return { x: kept.map((p) => run.schedules[p.schedule].cost), y: kept.map((p) => value(p).mean), error_y: bars(kept.map(value)), mode: "markers",
          name: esc(run.name), text: kept.map((p) => `${esc(run.name)}<br>${hover(run, p)}`), hovertemplate: "%{text}<extra></extra>",
          marker: { color: css(color), symbol, size: kept.map((p) => (p.schedule === run.winner ? 15 : 8)), opacity: 1, line: { width: 0.7, color: css("back") } } };
      });
      return { traces, shown: traces.some((t) => t.x.length), layout: { xaxis: { title: { text: "attention FLOPs, share of all-full (large marker: winner)", standoff: 10 }, tickformat: ".0%" },
        yaxis: { title: { text: "loss minus own all-full's, nats", standoff: 8 } } } };
    },
    needs(at) {
      const run = runs[at], needs = run.needs, best = run.finished ? "the winner" : "the best so far";
      const full = run.winner === null ? [] : run.schedules[run.winner].layers.map((s) => run.spans[s].kind === "full");
      const part = (keep, label, color, pattern) => ({ type: "bar", name: label, width: 0.8, x: needs.values.map((v, layer) => layer).filter((l) => keep(l)), y: needs.values.filter((v, l) => keep(l)),
        error_y: needs.errors ? { type: "data", array: needs.errors.filter((v, l) => keep(l)), thickness: 1.1, width: 2, color: css("soft") } : undefined,
        marker: { color: css(color), pattern: { shape: pattern, fillmode: "overlay", fgcolor: css("back"), size: 6, solidity: 0.25 } }, hovertemplate: "layer %{x}: %{y:.3g}<extra></extra>" });
      return { traces: [part((l) => full[l], `full in ${best}`, "full", ""), part((l) => !full[l], `sparse in ${best}`, "near", "/")], shown: true,
        layout: { barmode: "overlay", xaxis: { title: { text: "layer, bottom first", standoff: 8 }, dtick: run.n_layers > 16 ? undefined : 1 }, yaxis: { title: { text: needs.axis, standoff: 8, font: { size: 11 } } } } };
    },
    baselines(at) {
      const run = runs[at], rows = run.baselines, most = clip(rows.map((r) => r.difference.mean));
      const kept = rows.filter((r) => r.difference.mean <= most), label = (r) => esc(short(r.name, 30));
      const cut = rows.length - kept.length;
      return { traces: [{ x: kept.map((r) => r.difference.mean), y: kept.map(label), mode: "markers", error_x: bars(kept.map((r) => r.difference)),
        text: kept.map((r) => `${esc(short(r.name, 60))}<br>cost ${percent(run.schedules[r.schedule].cost)}<br>${ci(r.difference, true)} nats`), hovertemplate: "%{text}<extra></extra>",
        customdata: kept.map((r) => r.schedule), marker: { symbol: "square", size: 8, color: css("base") } }], shown: kept.length > 0, further: cut,
        layout: { shapes: [{ type: "line", x0: 0, x1: 0, yref: "paper", y0: 0, y1: 1, line: { color: css("win"), width: 1.5 } }],
          xaxis: { rangemode: "tozero", title: { text: "nats above the winner", standoff: 8 } }, yaxis: { type: "category", zeroline: false }, margin: { l: 10, r: 14, t: 10, b: 46 } } };
    },
    positions(at) {
      const { edges, lines } = runs[at].positions, looks = [["win", "solid", "circle"], ["ink", "dash", "diamond"], ["base", "dot", "square"]];
      const middle = edges.map((edge, i) => (edge + (i ? edges[i - 1] : Math.max(0, 2 * edge - (edges[i + 1] ?? edge)))) / 2);
      return { traces: lines.map((line, i) => ({ x: middle, y: line.values, name: esc(short(line.label, 30)), mode: "lines+markers", line: { color: css(looks[i][0]), dash: looks[i][1], width: 2 },
        marker: { symbol: looks[i][2], size: 7 }, hovertemplate: "token %{x:.0f}: %{y:.4f} nats<extra>" + esc(short(line.label, 30)) + "</extra>" })), shown: true,
        layout: { hovermode: "x", xaxis: { title: { text: "token position, middle of the bin", standoff: 8 } }, yaxis: { title: { text: "loss, nats", standoff: 8 } } } };
    },
    retrieval(at) {
      const { tasks, chance, rows } = runs[at].retrieval, looks = [["win", ""], ["ink", "/"], ["base", "."]];
      const labels = tasks.map((task) => esc(task).replace(/ (?=\S+$)/, "<br>"));
      const traces = rows.map((row, i) => ({ type: "bar", name: esc(short(row.label, 30)), x: labels, y: row.values, marker: { color: css(looks[i][0]), pattern: { shape: looks[i][1], fillmode: "overlay", fgcolor: css("back"), size: 6, solidity: 0.3 } },
        hovertemplate: "%{x}: %{y:.2f}<extra>" + esc(short(row.label, 30)) + "</extra>" }));
      if (chance.length)
        traces.push({ x: labels, y: chance, mode: "markers", name: "chance (no facts in the text)", marker: { symbol: "line-ew", size: 48, line: { width: 2.5, color: css("soft") } }, hovertemplate: "chance %{y:.2f}<extra></extra>" });
      return { traces, shown: true, layout: { barmode: "group", bargap: tasks.length > 1 ? 0.3 : 0.7, yaxis: { range: [0, 1.02], title: { text: "share right", standoff: 8 } }, xaxis: { tickangle: 0, tickfont: { size: 11 } } } };
    },
    depths(at) {
      const { places, chance, rows } = runs[at].depths, looks = [["win", "circle", "solid"], ["ink", "diamond", "dash"], ["base", "square", "dot"]];
      const lengths = [...new Set(places.map(([length]) => length))], traces = [];
      rows.forEach((row, i) => lengths.forEach((length) => {
        const own = places.map((place, k) => k).filter((k) => places[k][0] === length && row.values[k]), label = esc(short(row.label, 30));
        if (!own.length) return;
        traces.push({ x: [own.map(() => `${length.toLocaleString("en")} tokens`), own.map((k) => places[k][1].toFixed(1))], y: own.map((k) => row.values[k].mean),
          error_y: bars(own.map((k) => row.values[k]), looks[i][0]), mode: "lines+markers", name: label, legendgroup: String(i), showlegend: !traces.some((t) => t.legendgroup === String(i)),
          line: { color: css(looks[i][0]), dash: looks[i][2], width: 1.6 }, marker: { symbol: looks[i][1], size: 7, color: css(looks[i][0]) },
          text: own.map((k) => `${length.toLocaleString("en")} tokens, depth ${places[k][1]}: ${ci(row.values[k])} (${row.values[k].n} answers)`), hovertemplate: `%{text}<extra>${label}</extra>` });
      }));
      const look = { color: css("soft"), width: 1.5, dash: "dash" }, guess = chance === null ? {} : { shapes: [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: chance, y1: chance, line: look }] };
      if (chance !== null) traces.push({ x: traces[0].x.map((names) => names.slice(0, 1)), y: [chance], mode: "lines", name: `chance ${chance.toFixed(2)}`, line: look, hoverinfo: "skip" });
      return { traces, shown: true, layout: { ...guess, yaxis: { range: [0, 1.05], title: { text: "share of digits right", standoff: 8 } }, xaxis: { title: { text: "depth of the fact", standoff: 8 }, tickfont: { size: 11 } } } };
    },
    per_l(at) {
      const rows = runs[at].per_l, search = rows.filter((r) => r.best !== null), sure = rows.filter((r) => r.confirmed);
      return { traces: [
        { x: search.map((r) => r.l), y: search.map((r) => r.best), mode: "markers", name: "best of the search", marker: { symbol: "circle-open", size: 8, color: css("base"), line: { width: 1.5 } },
          text: search.map((r) => `l = ${r.l}: best ${r.best.toFixed(4)} of ${r.trained}`), hovertemplate: "%{text}<extra></extra>" },
        { x: sure.map((r) => r.l), y: sure.map((r) => r.confirmed.mean), error_y: bars(sure.map((r) => r.confirmed)), mode: "markers+lines", name: "best confirmed mean", line: { color: css("full"), width: 1.2, dash: "dot" },
          marker: { size: 8, color: css("full") }, text: sure.map((r) => `l = ${r.l}: ${ci(r.confirmed)} nats`), hovertemplate: "%{text}<extra></extra>" }].filter((t) => t.x.length),
        shown: rows.length > 0, layout: { xaxis: { title: { text: "l, number of full layers", standoff: 8 }, dtick: rows.length && rows[rows.length - 1].l <= 16 ? 1 : undefined }, yaxis: { title: { text: "loss, nats", standoff: 8 } } } };
    },
    noise(at) {
      const run = runs[at], rows = [...run.noise.rows].reverse(), most = clip(rows.map((r) => r.mean.mean)), kept = rows.filter((r) => r.mean.mean <= most);
      const label = (r) => esc(short(r.label || run.schedules[r.schedule].compact, 30)), ys = kept.map((r, i) => i);
      const dots = kept.flatMap((r, i) => r.values.map((v) => [v, i])), cut = rows.length - kept.length;
      return { traces: [
        { x: dots.map((d) => d[0]), y: dots.map((d) => d[1]), mode: "markers", name: `one ${run.unit}`, marker: { symbol: "circle-open", size: 6, color: css("base") }, hovertemplate: "%{x:+.4f} nats<extra></extra>" },
        { x: kept.map((r) => r.mean.mean), y: ys, error_x: bars(kept.map((r) => r.mean)), mode: "markers", name: "mean ± 95%", marker: { symbol: "diamond", size: 8, color: css("full") },
          text: kept.map((r) => `${label(r)}<br>${ci(r.mean, true)} nats`), hovertemplate: "%{text}<extra></extra>", customdata: kept.map((r) => r.schedule) }], shown: kept.length > 0, further: cut,
        layout: { yaxis: { tickvals: ys, ticktext: kept.map(label), range: [-0.7, kept.length - 0.3], showgrid: false, zeroline: false }, margin: { l: 10, r: 14, t: 10, b: 46 },
          xaxis: { title: { text: "nats above all-full", standoff: 8 } } } };
    },
  };
  let Plotly = null;
  function plot(box) {
    const at = Number(box.dataset.run), made = kinds[box.dataset.plot](at);
    if (!made.shown) {
      box.classList.add("empty");
      box.textContent = "Nothing is measured yet.";
      return;
    }
    if (!Plotly) return;
    const note = one(".further", box.parentElement) || node("p", null, null, { class: "small further" });
    note.textContent = made.further ? `${made.further} more lie further to the right; the table has them.` : "";
    box.after(note);
    Plotly.react(box, made.traces, layout(box, made.layout), config);
    if (box.dataset.bound) return;
    box.dataset.bound = "1";
    box.on("plotly_click", (event) => {
      const number = event.points.map((p) => p.customdata).find((n) => n !== undefined);
      if (number !== undefined) show(at, number, true);
    });
  }
  const boxes = all(".plot"), redraw = () => boxes.forEach(plot);

  // Choices, slider, buttons ------------------------------------------------------------------------------------------
  for (const box of all(".choices")) {
    const at = Number(box.dataset.run), run = runs[at];
    const ys = Object.keys(measures).filter((key) => run.points.filter((p) => measures[key][2](p)).length > 1);
    for (const [axis, keys, table, title] of [["y", ys, measures, "Vertical:"], ["x", ["cost", "kv"], sizes, "Horizontal:"]]) {
      if (keys.length < 2) continue;
      const set = node("fieldset", null, box);
      node("legend", title, set);
      for (const key of keys) {
        const label = node("label", null, set), input = node("input", null, label, { type: "radio", name: `${axis}-${at}`, value: key });
        input.checked = axes[at][axis] === key;
        label.append(table[key][0]);
        input.addEventListener("change", () => {
          axes[at][axis] = key;
          plot(one(`.plot[data-plot="frontier"][data-run="${at}"]`));
        });
      }
    }
  }
  for (const box of all(".slider")) {
    const at = Number(box.dataset.run), run = runs[at], rows = run.budgets.rows, input = one("input", box), out = one("output", box), solved = one(".solved", box);
    const card = (title, number, lines) => {
      const made = node("div", null, solved);
      node("h3", title, made);
      if (number === null) return node("p", "None within this budget.", made);
      const s = run.schedules[number];
      node("p", `${s.compact} (l = ${s.n_full}, cost ${percent(s.cost)}, KV cache ${bytes(s.kv)})`, made);
      lines.filter(Boolean).forEach((line) => node("p", line, made));
      node("button", "Show, copy", made, { type: "button", "aria-label": `Show and copy: ${s.compact}` }).addEventListener("click", () => show(at, number, true));
      return made;
    };
    const turn = () => {
      const row = rows[Number(input.value)];
      out.textContent = percent(row.budget);
      input.setAttribute("aria-valuetext", percent(row.budget));
      solved.replaceChildren();
      const measured = run.points.find((p) => p.schedule === row.measured);
      card("Winner among the measured", row.measured, measured ? [row.alike > 1 ? `The cheapest of ${row.alike} shown to lie within the tolerance of the lowest loss.` : "", `Loss ${ci(measured.loss)} nats` + (measured.to_full ? `, ${ci(measured.to_full, true)} to all-full, not corrected for the choice.` : "."),
        measured.digits ? `Text loss ${ci(measured.text_to_full, true)} to all-full, digits right ${ci(measured.digits)}.` : ""] : []);
      const offer = row.proposal, point = offer && run.points.find((p) => p.schedule === offer.schedule && p.loss);
      if (offer && offer.schedule !== row.measured)
        card("Proposed", offer.schedule, [point ? `Measured: loss ${ci(point.loss)} nats.` : offer.loss ? `Predicted loss ${ci(offer.loss)} nats; ${offer.state}.` : "Its loss was not measured."]);
      axes[at].mark = row.budget;
      const figure = one(`.plot[data-plot="frontier"][data-run="${at}"]`);
      if (Plotly && figure.dataset.bound) plot(figure);
    };
    const first = rows.filter((row) => row.budget <= run.budget).length - 1;
    input.value = Math.max(0, first);
    input.addEventListener("input", turn);
    turn();
    axes[at].mark = run.budget;
  }
  document.addEventListener("click", (event) => {
    const pick = event.target.closest("button.pick"), button = event.target.closest("button.copy");
    if (pick) show(Number(pick.dataset.run), Number(pick.dataset.schedule), true);
    else if (button) copy(one("pre", button.parentElement).textContent, "the text");
  });
  runs.forEach((run, at) => {
    if (run.winner !== null) show(at, run.winner);
    else one(`.picture[data-run="${at}"]`).hidden = true;
  });

  // Plotly is packed: most of the file would be its text otherwise. -------------------------------------------------------
  const fail = (why) => boxes.forEach((box) => {
    box.classList.add("empty");
    box.textContent = `No figure: ${why}. The tables hold every number.`;
  });
  try {
    if (!("DecompressionStream" in window)) throw new Error("this browser cannot unpack it");
    const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent.trim()), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const source = URL.createObjectURL(new Blob([await new Response(stream).arrayBuffer()], { type: "text/javascript" }));
    await new Promise((resolve, reject) => {
      const script = node("script", null, null, { src: source });
      script.onload = resolve;
      script.onerror = () => reject(new Error("its script was refused"));
      document.head.append(script);
    });
    Plotly = window.Plotly;
    redraw();
  } catch (error) {
    fail(error.message);
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  // Paper is laid out after this event, so the class brings its width, palette and heights now.
  const print = (on) => {
    document.documentElement.classList.toggle("printing", on);
    redraw();
  };
  addEventListener("beforeprint", () => print(true));
  addEventListener("afterprint", () => print(false));
  document.documentElement.dataset.ready = "1";
})();
