"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { points, keys, metric } = data;
  const space = "http://www.w3.org/2000/svg";
  const make = (name, attributes = {}, parent = null, text = null) => {
    const node = document.createElementNS(space, name);
    for (const [key, value] of Object.entries(attributes)) if (value !== null) node.setAttribute(key, value);
    if (text !== null) node.textContent = text;
    parent?.append(node);
    return node;
  };
  const digits = (value) => {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-3 || size >= 1e7)) return Number(value.toPrecision(4)).toExponential().replace("e+", "e");
    return Number(value.toPrecision(4)).toLocaleString("en", { maximumFractionDigits: 12 });
  };
  const clock = (seconds) => {
    const whole = Math.round(seconds), pad = (n) => String(n).padStart(2, "0");
    const hours = Math.floor(whole / 3600), minutes = Math.floor(whole / 60) % 60;
    return hours ? `${hours}:${pad(minutes)}:${pad(whole % 60)}` : `${minutes}:${pad(whole % 60)}`;
  };

  // ---- scales: a number to a place
  const steps = (low, high, most, log) => {
    if (log) {
      const first = Math.ceil(Math.log10(low) - 1e-9), last = Math.floor(Math.log10(high) + 1e-9);
      const every = Math.max(1, Math.ceil((last - first + 1) / most));
      const powers = [];
      for (let power = first; power <= last; power += every) powers.push(10 ** power);
      if (powers.length >= 2) return powers;
    }
    const span = high - low || Math.abs(high) || 1;
    const rough = span / most, unit = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((n) => n * unit).find((n) => n >= rough);
    const ticks = [];
    for (let tick = Math.ceil(low / step - 1e-9) * step; tick <= high + step * 1e-9; tick += step) ticks.push(Number(tick.toPrecision(12)));
    return ticks;
  };
  const scale = (values, from, to, log = false) => {
    const fit = values.filter((value) => value !== null && Number.isFinite(value) && (!log || value > 0));
    let low = Math.min(...fit), high = Math.max(...fit);
    if (!fit.length) [low, high] = log ? [1, 10] : [0, 1];
    if (low === high) [low, high] = log ? [low / 2, high * 2] : [low - (Math.abs(low) * 0.05 || 0.5), high + (Math.abs(high) * 0.05 || 0.5)];
    const at = log ? Math.log : (value) => value;
    const place = (value) => from + (at(value) - at(low)) / (at(high) - at(low)) * (to - from);
    place.ticks = (most) => steps(low, high, most, log);
    place.inverse = (x) => {
      const share = (x - from) / (to - from), value = at(low) + share * (at(high) - at(low));
      return log ? Math.exp(value) : value;
    };
    return place;
  };

  // ---- colours: the better the warmer; a few alternatives get one each
  const stops = [[124, 138, 165], [91, 143, 214], [39, 160, 139], [224, 161, 43], [228, 87, 46]];
  const warmth = (share) => {
    const place = Math.max(0, Math.min(1, share)) * (stops.length - 1), index = Math.min(stops.length - 2, Math.floor(place));
    const mixed = stops[index].map((one, i) => Math.round(one + (stops[index + 1][i] - one) * (place - index)));
    return `rgb(${mixed.join(",")})`;
  };
  const compared = points.filter((one) => one.value !== null);
  const ordered = (some) => {
    const order = some.filter((one) => one.value !== null).sort((a, b) => (metric.mode === "min" ? b.value - a.value : a.value - b.value));
    return new Map(order.map((one, i) => [one.point, order.length > 1 ? i / (order.length - 1) : 1]));
  };
  const goodness = ordered(compared);
  const ofMetric = (one) => (goodness.has(one.point) ? warmth(goodness.get(one.point)) : "var(--dim)");
  const colouring = (by, some) => {
    if (by < 0) {
      const among = ordered(some);  // or the best of many would all look the same
      return { of: (one) => (among.has(one.point) ? warmth(among.get(one.point)) : "var(--dim)"), legend: [["worst", warmth(0)], ["best", warmth(1)]] };
    }
    const key = keys[by];
    if (key.names.length) {
      const seen = [...new Set(points.map((one) => one.places[by]))].filter((place) => place !== null).sort((a, b) => a - b);
      const colour = new Map(seen.map((place, i) => [place, `var(--c${i % 8})`]));
      return { of: (one) => colour.get(one.places[by]) ?? "var(--dim)", legend: seen.map((place) => [key.names[place] ?? digits(place), colour.get(place)]) };
    }
    const share = scale(points.map((one) => one.places[by]), 0, 1, key.log);
    const ends = [0, 1].map((end) => [digits(share.inverse(end)), warmth(end)]);
    return { of: (one) => (one.places[by] === null ? "var(--dim)" : warmth(share(one.places[by]))), legend: ends };
  };

  // ---- what a point is, beside the pointer
  const hint = document.getElementById("hint");
  const words = (one) => [
    `trial ${one.name}${one.place ? `, rank ${one.place}` : ""}`,
    `${metric.name} ${digits(one.value)}${one.error !== null ? ` ± ${digits(one.error)}` : ""}`,
    ...keys.map((key, i) => (one.shown[i] ? `${key.key}=${one.shown[i]}` : null)).filter(Boolean), one.state,
  ].join("\n");
  const lit = (number, on) => document.querySelectorAll(`[data-of="${number}"]`).forEach((node) => node.classList.toggle("lit", on));
  const pointed = (node, one) => {
    node.dataset.of = one.point;
    node.addEventListener("pointerenter", () => { hint.textContent = words(one); hint.hidden = false; lit(one.point, true); });
    node.addEventListener("pointermove", (event) => {
      const room = 12, width = hint.offsetWidth, height = hint.offsetHeight;
      hint.style.left = `${Math.min(event.clientX + room, innerWidth - width - room)}px`;
      hint.style.top = `${event.clientY + room + height > innerHeight ? event.clientY - height - room : event.clientY + room}px`;
    });
    node.addEventListener("pointerleave", () => { hint.hidden = true; lit(one.point, false); });
    return node;
  };

  // ---- a drawing with two axes
  const canvas = (place) => {
    const width = place.clientWidth, height = Number(place.dataset.height);
    place.replaceChildren();
    const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img" });
    place.append(svg);
    return { svg, width, height, left: 58, right: width - 12, top: 10, bottom: height - 28 };
  };
  const axes = (area, x, y, xWords = digits, yWords = digits, xTicks = null, title = "") => {
    if (title) make("text", { class: "title", x: area.left, y: area.bottom - 6 }, area.svg, title);
    for (const tick of y.ticks(5)) {
      make("line", { class: "grid", x1: area.left, x2: area.right, y1: y(tick), y2: y(tick) }, area.svg);
      make("text", { x: area.left - 8, y: y(tick) + 4, "text-anchor": "end" }, area.svg, yWords(tick));
    }
    for (const tick of xTicks ?? x.ticks(Math.max(2, Math.floor(area.width / 110))))
      make("text", { x: x(tick), y: area.bottom + 18, "text-anchor": "middle" }, area.svg, xWords(tick));
    make("line", { class: "axis", x1: area.left, x2: area.right, y1: area.bottom, y2: area.bottom }, area.svg);
  };

  // ---- best so far
  const progress = () => {
    const area = canvas(document.getElementById("progress"));
    const seen = data.progress.filter((one) => one.value !== null);
    const x = scale([0, ...data.progress.map((one) => one.seconds)], area.left, area.right), y = scale(seen.map((one) => one.value), area.bottom, area.top);
    axes(area, x, y, clock, digits, null, "time since the start →");
    const by = new Map(points.map((one) => [one.point, one]));
    let best = null, path = "";
    for (const one of seen) {
      const better = best === null || (metric.mode === "min" ? one.value < best : one.value > best);
      if (better) path += best === null ? `M${x(one.seconds)} ${y(one.value)}` : `H${x(one.seconds)}V${y(one.value)}`;
      if (better) best = one.value;
      const point = by.get(one.point);
      pointed(make("circle", { cx: x(one.seconds), cy: y(one.value), r: 3.5, fill: ofMetric(point) }, area.svg), point);
    }
    if (path) make("path", { class: "best", d: `${path}H${area.right}` }, area.svg);
  };

  // ---- parallel coordinates
  const brushes = new Map();
  const parallel = () => {
    const place = document.getElementById("parallel");
    if (!place) return;
    const area = canvas(place);
    const names = [...keys.map((key) => key.key), metric.name], last = names.length - 1;
    const top = 42, bottom = area.height - 12, left = 30, right = area.width - 46;
    const xs = names.map((_, i) => left + (right - left) * i / last);
    const valueOf = (one, i) => (i === last ? one.value : one.places[i]);
    const ys = names.map((_, i) => (i === last ? scale(compared.map((one) => one.value), bottom, top)
      : keys[i].names.length ? (value) => bottom - (bottom - top) * (keys[i].names.length > 1 ? value / (keys[i].names.length - 1) : 0.5)
        : scale(points.map((one) => one.places[i]), bottom, top, keys[i].log)));
    const lines = [...compared].sort((a, b) => goodness.get(a.point) - goodness.get(b.point)).map((one) => {
      let path = "", open = false;
      names.forEach((_, i) => {
        const value = valueOf(one, i);
        if (value === null) { open = false; return; }
        path += `${open ? "L" : "M"}${xs[i].toFixed(1)} ${ys[i](value).toFixed(1)}`;
        open = true;
      });
      return [one, pointed(make("path", { class: "line", d: path, stroke: ofMetric(one) }, area.svg), one)];
    });
    const filter = () => {
      let kept = 0;
      for (const [one, line] of lines) {
        const inside = [...brushes].every(([i, [a, b]]) => { const value = valueOf(one, i); return value !== null && ys[i](value) >= a && ys[i](value) <= b; });
        line.classList.toggle("off", !inside);
        kept += inside;
      }
      document.getElementById("parallel-note").textContent = brushes.size ? `${kept} of ${lines.length} points` : "";
    };
    const room = (right - left) / Math.max(1, last);
    names.forEach((name, i) => {
      make("line", { class: "axis", x1: xs[i], x2: xs[i], y1: top, y2: bottom }, area.svg);
      const short = name.length * 6.2 > room ? name.split(/[./]/).slice(-1)[0] : name;
      const anchor = i === 0 ? "start" : i === last ? "end" : "middle";
      make("title", {}, make("text", { class: "name", x: i === 0 ? 0 : i === last ? area.width : xs[i], y: i % 2 && room < 90 ? 26 : 12, "text-anchor": anchor }, area.svg, short), name);
      const ticks = i < last && keys[i].names.length ? keys[i].names.map((word, n) => [n, word]) : (i < last && keys[i].ticks.length ? keys[i].ticks : ys[i].ticks(4)).map((tick) => [tick, digits(tick)]);
      for (const [tick, word] of ticks) make("text", { x: xs[i] + 5, y: ys[i](tick) + 4 }, area.svg, word.length * 6 > room - 8 ? `${word.slice(0, Math.max(2, Math.floor(room / 7)))}…` : word);
      const mark = make("rect", { class: "brush", x: xs[i] - 6, width: 12, visibility: "hidden" }, area.svg);
      const show = () => {
        const span = brushes.get(i);
        mark.setAttribute("visibility", span ? "visible" : "hidden");
        if (span) { mark.setAttribute("y", span[0]); mark.setAttribute("height", Math.max(1, span[1] - span[0])); }
        filter();
      };
      const catcher = make("rect", { class: "catch", x: xs[i] - 10, width: 20, y: top, height: bottom - top }, area.svg);
      const height = (event) => Math.max(top, Math.min(bottom, (event.clientY - area.svg.getBoundingClientRect().top)));
      let begun = null;
      catcher.addEventListener("pointerdown", (event) => { begun = height(event); catcher.setPointerCapture(event.pointerId); });
      catcher.addEventListener("pointermove", (event) => {
        if (begun === null) return;
        const here = height(event);
        brushes.set(i, [Math.min(begun, here) - 1, Math.max(begun, here) + 1]);
        show();
      });
      catcher.addEventListener("pointerup", () => { begun = null; });
      catcher.addEventListener("dblclick", () => { brushes.clear(); parallel(); });
      show();
    });
    filter();
  };

  // ---- each key against the metric
  const scatter = (place) => {
    const number = Number(place.dataset.key), key = keys[number], area = canvas(place);
    const seen = compared.filter((one) => one.places[number] !== null);
    const named = key.names.length > 0;
    const x = named ? scale([-0.5, key.names.length - 0.5], area.left, area.right) : scale(seen.map((one) => one.places[number]), area.left + 6, area.right - 6, key.log);
    const y = scale(seen.map((one) => one.value), area.bottom - 4, area.top);
    const room = (area.right - area.left) / Math.max(1, key.names.length);
    const word = (tick) => { const name = key.names[tick]; return name.length * 6.2 > room ? `${name.slice(0, Math.max(2, Math.floor(room / 7)))}…` : name; };
    axes(area, x, y, named ? word : digits, digits, named ? key.names.map((_, i) => i) : key.ticks.length ? key.ticks : null);
    seen.forEach((one, i) => {
      const shift = named ? ((i * 0.618) % 1 - 0.5) * Math.min(0.6, 30 / room) : 0;  // or they would hide each other
      pointed(make("circle", { cx: x(one.places[number] + shift), cy: y(one.value), r: 4, fill: ofMetric(one) }, area.svg), one);
    });
  };

  // ---- curves
  const form = document.getElementById("curve-form");
  const curves = () => {
    const area = canvas(document.getElementById("curves"));
    const by = Number(form.by.value), log = form.log.checked, mean = form.mean?.checked;
    const most = Number(form.most.value) || points.length;
    const kept = points.filter((one) => one.curves.length).slice(0, most);
    const { of, legend } = colouring(by, kept);
    const lines = kept.map((one) => ({ one, drawn: mean ? [averaged(one.curves)] : one.curves.map(([xs, ys]) => [xs, ys, null]) }));
    const all = lines.flatMap(({ drawn }) => drawn);
    const x = scale([0, ...all.flatMap(([xs]) => xs)], area.left, area.right);
    const values = all.flatMap(([, ys, spread]) => (spread ? ys.flatMap((y, i) => [y - spread[i], y + spread[i]]) : ys));
    const canLog = log && values.every((value) => value === null || value > 0);
    const y = scale(values, area.bottom, area.top, canLog);
    axes(area, x, y, digits, digits, null, `${metric.name} over steps →`);
    for (const { one, drawn } of lines.reverse()) {
      for (const [xs, ys, spread] of drawn) {
        if (spread && !canLog) {
          const upper = xs.map((step, i) => `${x(step)} ${y(ys[i] + spread[i])}`), lower = xs.map((step, i) => `${x(step)} ${y(ys[i] - spread[i])}`).reverse();
          make("path", { class: "band", d: `M${[...upper, ...lower].join("L")}Z`, fill: of(one) }, area.svg);
        }
        let path = "", open = false;
        xs.forEach((step, i) => {
          if (ys[i] === null) { open = false; return; }
          path += `${open ? "L" : "M"}${x(step).toFixed(1)} ${y(ys[i]).toFixed(1)}`;
          open = true;
        });
        pointed(make("path", { class: "line", d: path, stroke: of(one) }, area.svg), one);
        if (xs.length === 1 && ys[0] !== null) pointed(make("circle", { cx: x(xs[0]), cy: y(ys[0]), r: 3, fill: of(one) }, area.svg), one);
      }
    }
    const place = document.getElementById("curve-legend");
    place.replaceChildren(...legend.map(([word, colour]) => {
      const span = document.createElement("span"), chip = document.createElement("i");
      chip.style.background = colour;
      span.append(chip, word);
      return span;
    }));
  };
  const averaged = (several) => {
    const xs = [...new Set(several.flatMap(([steps]) => steps))].sort((a, b) => a - b), ys = [], spread = [], kept = [];
    for (const step of xs) {
      const values = several.map(([steps, all]) => all[steps.indexOf(step)]).filter((value) => value !== undefined && value !== null);
      if (!values.length) continue;
      const mean = values.reduce((a, b) => a + b, 0) / values.length;
      kept.push(step);
      ys.push(mean);
      spread.push(values.length > 1 ? Math.sqrt(values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (values.length - 1)) : 0);
    }
    return [kept, ys, spread];
  };
  form.addEventListener("input", curves);
  form.addEventListener("submit", (event) => event.preventDefault());

  // ---- the table
  const table = document.getElementById("ranking"), rows = [...table.tBodies[0].rows];
  const search = document.getElementById("search"), count = document.getElementById("search-count");
  const heads = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
  const texts = new Map(rows.map((row) => [row, [...row.cells].map((cell, i) => `${cell.textContent} ${heads[i]}=${cell.textContent} ${heads[i].split(/[./]/).slice(-1)[0]}=${cell.textContent}`).join(" ").toLowerCase()]));
  const find = () => {
    const wanted = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let kept = 0;
    for (const row of rows) {
      row.hidden = !wanted.every((word) => texts.get(row).includes(word));
      kept += !row.hidden;
    }
    count.textContent = wanted.length ? `${kept} of ${rows.length}` : "";
  };
  search.addEventListener("input", find);
  let sorted = null;
  table.tHead.addEventListener("click", (event) => {
    const head = event.target.closest("[data-sort]");
    if (!head) return;
    const index = head.cellIndex, down = sorted === index;
    sorted = down ? null : index;
    const key = (row) => { const cell = row.cells[index]; return cell.dataset.value ?? cell.textContent.replaceAll(",", "").trim(); };
    const compare = (a, b) => {
      const [one, other] = [key(a), key(b)];
      if (!one || !other) return one ? -1 : other ? 1 : 0;  // what has none comes last
      const both = Number(one) - Number(other);
      return (Number.isNaN(both) ? one.localeCompare(other, "en", { numeric: true }) : both) * (down ? -1 : 1);
    };
    table.tBodies[0].append(...[...rows].sort(compare));
  });
  rows.forEach((row) => {
    row.addEventListener("pointerenter", () => lit(row.dataset.point, true));
    row.addEventListener("pointerleave", () => lit(row.dataset.point, false));
  });

  const all = () => {
    progress();
    parallel();
    document.querySelectorAll(".scatter").forEach(scatter);
    curves();
  };
  for (const [event, isPaper] of [["beforeprint", true], ["afterprint", false]])
    addEventListener(event, () => { document.documentElement.classList.toggle("paper", isPaper); all(); });
  let width = 0;
  new ResizeObserver(() => {
    if (document.body.clientWidth !== width) { width = document.body.clientWidth; brushes.clear(); all(); }
  }).observe(document.body);
  width = document.body.clientWidth;
  all();
})();
