"use strict";
(async () => {
  const run = JSON.parse(document.getElementById("numbers").textContent);
  const byId = (id) => document.getElementById(id);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const MOST_BANDS = 6; // of curves at once: more hide each other
  const repaint = new Set(); // what to draw again when the scheme changes
  dark.addEventListener("change", () => repaint.forEach((paint) => paint()));

  // --- text ---

  const fixed = (value, digits = 1) => Number.isFinite(value) ? value.toFixed(digits).replace("-", "−") : "none";
  const short = (value) => Number.isFinite(value) ? String(Number(value.toPrecision(3))).replace("-", "−") : "none";
  const withUnits = (text, units) => units && units !== "1" ? `${text} ${units}` : text;
  const moment = (iso) => `${iso.slice(0, 10)} ${iso.slice(11, iso.slice(14, 16) === "00" ? 13 : 16)} UTC`;

  function place(latitude, longitude) {
    const east = ((longitude + 180) % 360 + 360) % 360 - 180;
    const degrees = (value, [positive, negative]) =>
      `${Number(Math.abs(value).toFixed(2))}°${value > 0 ? positive : value < 0 ? negative : ""}`;
    return `${degrees(latitude, "NS")} ${degrees(east, "EW")}`;
  }

  function element(name, attributes = {}, ...children) {
    const made = name.startsWith("svg:")
      ? document.createElementNS("http://www.w3.org/2000/svg", name.slice(4)) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  const fill = (select, entries) => select.replaceChildren(...entries.map(([value, text]) => new Option(text, value)));

  // --- numbers: base64 of deflated bytes, little-endian ---

  async function bytes(text) {
    const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  async function unpack({ offset, step, data }) {
    const planes = await bytes(data);
    const count = planes.length / 2;
    const values = new Float32Array(count);
    for (let i = 0; i < count; i++) {
      const code = planes[i] | planes[count + i] << 8;
      values[i] = code === 0xffff ? NaN : offset + step * code;
    }
    return values;
  }

  // --- colours: anchors equally far apart to the eye ---

  const ANCHORS = {
    temperature: "35206b 353e88 2c5ba6 4177b6 5a93c5 78afd2 a2c8db cbe0e2 f6edc6 " +
      "f5cd8f f1ac5e e6884d da633c c0453a a52337 801733 5b0f2e",
    viridis: "440154 48186a 472d7b 424086 3b528b 33638d 2c728e 26828e 21918c 1fa088 28ae80 3fbc73 5ec962 84d44b addc30 d8e219 fde725",
    magma: "000004 0a0822 1d1147 36106b 51127c 6a1c81 832681 9c2e7f b73779 d0416f e75263 f56b5c fc8961 fea772 fec488 fde2a3 fcfdbf",
    difference: "1b4a97 365fa3 5074af 6b89bb 859ec7 a1b3d2 bdc9dc d9dee7 f6f4f1 " +
      "eedad5 e4c1ba daa79f cf8e84 c4756a b75b51 a94037 9b1f1c",
  };

  function palette(name) {
    const anchors = ANCHORS[name].split(" ").map((hex) => [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16)));
    const table = new Uint8ClampedArray(3 * 256);
    for (let i = 0; i < 256; i++) {
      const at = i / 255 * (anchors.length - 1), left = Math.min(Math.floor(at), anchors.length - 2);
      for (let c = 0; c < 3; c++) table[3 * i + c] = anchors[left][c] + (at - left) * (anchors[left + 1][c] - anchors[left][c]);
    }
    return table;
  }
  const PALETTES = Object.fromEntries(Object.keys(ANCHORS).map((name) => [name, palette(name)]));

  const colour = (table, share) => 3 * Math.max(0, Math.min(255, Math.floor(256 * share)));

  function step(span, count) {
    const power = 10 ** Math.floor(Math.log10(span / count || 1));
    return power * ([1, 2, 2.5, 5].find((factor) => factor * power * count >= span) ?? 10);
  }

  function nice(low, high) {
    if (!(high > low)) [low, high] = [low - (Math.abs(low) || 1) * .01, low + (Math.abs(low) || 1) * .01];
    const size = step(high - low, 8);
    return [Math.floor(low / size) * size, Math.ceil(high / size) * size];
  }

  function percentile(values, share) {
    const sorted = values.filter(Number.isFinite).sort();
    return sorted.length ? sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] : NaN;
  }

  function bar(host, { table, low, high, flip }, label) {
    const stops = Array.from({ length: 17 }, (_, i) => {
      const at = colour(table, flip ? 1 - i / 16 : i / 16);
      return `rgb(${table[at]} ${table[at + 1]} ${table[at + 2]})`;
    });
    const strip = element("div");
    strip.style.background = `linear-gradient(to right, ${stops.join(",")})`;
    host.replaceChildren(strip, element("div", {}, ...[short(low), label, short(high)].map((text) => element("span", {}, text))));
  }

  // --- maps: equal steps of degrees, as wide as they are in the middle of the region ---

  class FieldMap {
    constructor(canvas, grid) {
      const { south, north, west, east } = run.region;
      Object.assign(this, { canvas, grid, cursor: null, star: null });
      this.width = grid.longitude.length;
      const ratio = (east - west) * Math.max(.35, Math.cos((south + north) / 2 * Math.PI / 180)) / (north - south);
      canvas.style.aspectRatio = String(ratio);
      canvas.setAttribute("role", "img");
      new ResizeObserver(() => this.paint()).observe(canvas);
      repaint.add(() => this.paint());
    }

    /** values of the grid points; hatched where mask is not 0. */
    show(values, scale, label, mask = null) {
      Object.assign(this, { values, scale, mask });
      this.canvas.setAttribute("aria-label", label);
      this.paint();
    }

    /** Index of the grid point nearest to a place of the map, both from 0 to 1. */
    node(x, y) {
      const { south, north, west, east } = run.region;
      return this.nearest(north + y * (south - north), west + x * (east - west));
    }

    nearest(latitude, longitude) {
      const closest = (axis, distance) => axis.reduce((best, value, i) => distance(value) < distance(axis[best]) ? i : best, 0);
      const row = closest(this.grid.latitude, (value) => Math.abs(value - latitude));
      const column = closest(this.grid.longitude, (value) => Math.abs(((value - longitude + 180) % 360 + 360) % 360 - 180));
      return row * this.width + column;
    }

    where(node) {
      return [this.grid.latitude[Math.floor(node / this.width)], this.grid.longitude[node % this.width]];
    }

    /** The grid point one step up, down, left or right; it stays on the map, and goes round the globe. */
    beside(node, key) {
      const height = this.grid.latitude.length, round = run.region.east - run.region.west > 359.9;
      let row = Math.floor(node / this.width), column = node % this.width;
      row = Math.max(0, Math.min(height - 1, row + (key === "ArrowUp") - (key === "ArrowDown")));
      column += (key === "ArrowRight") - (key === "ArrowLeft");
      column = round ? (column + this.width) % this.width : Math.max(0, Math.min(this.width - 1, column));
      return row * this.width + column;
    }

    paint() {
      const { canvas } = this, size = Math.min(devicePixelRatio || 1, 2);
      const width = Math.round(canvas.clientWidth * size), height = Math.round(canvas.clientHeight * size);
      if (!this.values || !width || !height) return;
      if (canvas.width !== width || canvas.height !== height || !this.rows) {
        [canvas.width, canvas.height] = [width, height];
        this.columns = Int32Array.from({ length: width }, (_, x) => this.node((x + .5) / width, 0) % this.width);
        this.rows = Int32Array.from({ length: height }, (_, y) => this.node(0, (y + .5) / height)).map((n) => n - n % this.width);
      }
      this.base = Object.assign(element("canvas"), { width, height });
      const context = this.base.getContext("2d");
      this.paintCells(context, width, height);
      this.paintLines(context, run.region.borders, .5 * size, size);
      this.paintLines(context, run.region.coast, .9 * size, size);
      this.mark();
    }

    /** Draw what was painted, and the marks on it: a cursor moves without painting the map again. */
    mark() {
      if (!this.base) return;
      const context = this.canvas.getContext("2d"), size = Math.min(devicePixelRatio || 1, 2);
      context.drawImage(this.base, 0, 0);
      if (this.cursor !== null) this.paintMark(context, this.cursor, size, false);
      if (this.star !== null) this.paintMark(context, this.star, size, true);
    }

    paintCells(context, width, height) {
      const { table, low, high, flip } = this.scale;
      const image = context.createImageData(width, height);
      const missing = getComputedStyle(document.documentElement).getPropertyValue("--missing").trim();
      const empty = [1, 3, 5].map((at) => parseInt(missing.slice(at, at + 2), 16));
      const span = high - low || 1, dash = Math.round(6 * Math.min(devicePixelRatio || 1, 2));
      for (let y = 0, at = 0; y < height; y++) {
        for (let x = 0; x < width; x++, at += 4) {
          const node = this.rows[y] + this.columns[x], value = this.values[node];
          const known = Number.isFinite(value), lined = this.mask?.[node] && (x + y) % dash < dash / 6;
          const share = (value - low) / span;
          const from = known ? colour(table, flip ? 1 - share : share) : 0;
          for (let c = 0; c < 3; c++) image.data[at + c] = lined ? 90 : known ? table[from + c] : empty[c];
          image.data[at + 3] = 255;
        }
      }
      context.putImageData(image, 0, 0);
    }

    point(latitude, longitude) {
      const { south, north, west, east } = run.region;
      const span = east - west, from = west + ((longitude - west) % 360 + 360) % 360;
      return [(from - west) / span * this.canvas.width, (north - latitude) / (north - south) * this.canvas.height];
    }

    paintLines(context, lines, width, size) {
      const { south, north, west, east } = run.region, { canvas } = this;
      const path = new Path2D();
      for (const line of lines) {
        for (let i = 0; i < line.length; i += 2) {
          const x = (line[i] / 100 - west) / (east - west) * canvas.width;
          const y = (north - line[i + 1] / 100) / (north - south) * canvas.height;
          path[i ? "lineTo" : "moveTo"](x, y);
        }
      }
      context.lineJoin = "round";
      for (const [stroke, extra] of [["rgb(255 255 255 / 45%)", 1.2 * size], ["rgb(25 25 25 / 85%)", 0]]) {
        [context.strokeStyle, context.lineWidth] = [stroke, width + extra];
        context.stroke(path);
      }
    }

    paintMark(context, node, size, filled) {
      const [x, y] = this.point(...this.where(node));
      const radius = (filled ? 6 : 5) * size;
      context.beginPath();
      context.arc(x, y, radius, 0, 2 * Math.PI);
      if (filled) {
        context.fillStyle = "#56b4e9";
        context.fill();
      }
      for (const [stroke, width] of [["#ffffff", 4 * size], ["#000000", 2 * size]]) {
        [context.strokeStyle, context.lineWidth] = [stroke, width];
        context.stroke();
      }
    }
  }

  /** Let pointer and arrow keys move a cursor over maps of the same grid; the first of them takes the keys. */
  function explore(maps, { hover, choose, start }) {
    const at = (map, event) => {
      const box = map.canvas.getBoundingClientRect();
      return map.node((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
    };
    const move = (node) => {
      for (const map of maps) {
        map.cursor = node;
        map.mark();
      }
      hover(node);
    };
    for (const map of maps) {
      map.canvas.addEventListener("pointermove", (event) => move(at(map, event)));
      map.canvas.addEventListener("click", (event) => (choose ?? move)(at(map, event)));
      map.canvas.addEventListener("pointerleave", () => {
        if (choose) move(null);
      });
    }
    const { canvas } = maps[0];
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "application");
    canvas.setAttribute("aria-roledescription", "map");
    canvas.addEventListener("keydown", (event) => {
      if (!event.key.startsWith("Arrow") || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      (choose ?? move)(maps[0].beside(start(), event.key));
    });
    return move;
  }

  const thinned = ({ stride }) => stride > 1 ? ` Every ${stride}th point of the grid in both directions.` : "";

  // --- curves ---

  const known = [...new Set(["scores", "training", "forecasts"].flatMap((part) => {
    const models = run[part]?.models ?? [];
    return Array.isArray(models) ? models : Object.keys(models);
  }))];

  function styleOf(name) {
    const reference = run.baselines.includes(name);
    const position = known.filter((other) => run.baselines.includes(other) === reference).indexOf(name);
    const dashes = reference ? ["6 4", "2 3"] : ["", "10 3 2 3", "3 3"], colours = reference ? 4 : 6;
    const stroke = `var(--${reference ? "g" : "c"}${position % colours})`;
    return { stroke, dash: dashes[Math.floor(position / colours) % dashes.length], shape: position % 4, reference };
  }

  function marker({ stroke, shape }, x, y) {
    const r = 3.6;
    const outline = [
      null, `M${x - r} ${y - r}h${2 * r}v${2 * r}h${-2 * r}z`,
      `M${x} ${y - 1.4 * r}L${x + 1.4 * r} ${y}L${x} ${y + 1.4 * r}L${x - 1.4 * r} ${y}z`, `M${x} ${y - 1.3 * r}l${1.2 * r} ${2.2 * r}h${-2.4 * r}z`,
    ][shape];
    const made = outline ? element("svg:path", { d: outline }) : element("svg:circle", { cx: x, cy: y, r });
    made.style.fill = stroke;
    return made;
  }

  function curve({ stroke, dash, reference }, points) {
    const made = element("svg:polyline", { points: points.map((point) => point.join()).join(" "), fill: "none" });
    Object.assign(made.style, { stroke, strokeDasharray: dash, strokeWidth: reference ? 1.5 : 2.2 });
    return made;
  }

  class Chart {
    constructor(host, labelX, stepText) {
      Object.assign(this, { host, labelX, stepText, hidden: new Set(), series: [], at: null });
      this.svg = element("svg:svg", { tabindex: "0", role: "img" });
      this.legend = element("ul", { class: "legend", "aria-label": "Curves shown" });
      this.readout = element("p", { class: "readout", role: "status" });
      host.replaceChildren(this.svg, this.legend, this.readout);
      new ResizeObserver(() => this.draw()).observe(host);
      this.svg.addEventListener("pointermove", (event) => this.point(event));
      this.svg.addEventListener("click", (event) => this.point(event));
      this.svg.addEventListener("keydown", (event) => {
        if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
        event.preventDefault();
        const now = this.at === null ? -1 : this.xs.indexOf(this.at);
        this.read(this.xs[Math.max(0, Math.min(this.xs.length - 1, now + (event.key === "ArrowRight" ? 1 : -1)))]);
      });
    }

    /** series: [{name, points: [[x, y], ...], band: [[low, high], ...]}]; a curve breaks where y is null; bands are optional. */
    show(series, label, units, fromZero) {
      Object.assign(this, { series, label, units, fromZero, at: null });
      this.xs = [...new Set(series.flatMap(({ points }) => points.map(([x]) => x)))].sort((a, b) => a - b);
      this.readout.textContent = "Point at the curves, or use the arrow keys, to read their values.";
      this.legend.replaceChildren(...series.map(({ name }) => this.entry(name)));
      this.svg.setAttribute("aria-label", `${label}, a curve each for ${series.map(({ name }) => name).join(", ")}`);
      this.draw();
    }

    entry(name) {
      const box = element("input", { type: "checkbox" });
      box.checked = !this.hidden.has(name);
      box.addEventListener("change", () => {
        this.hidden[box.checked ? "delete" : "add"](name);
        this.draw();
      });
      const style = styleOf(name);
      const sample = element("svg:svg", { "aria-hidden": "true" }, curve(style, [[0, 7], [34, 7]]), marker(style, 17, 7));
      return element("li", {}, element("label", {}, box, sample, name));
    }

    draw() {
      const width = this.host.clientWidth, shown = this.series.filter(({ name }) => !this.hidden.has(name));
      if (!width || !this.xs?.length) return;
      const height = Math.max(220, Math.min(360, width * .45)), [left, right, top, bottom] = [58, 12, 24, 40];
      const banded = shown.filter(({ band }) => band && !band.flat().includes(null)), shaded = banded.length > MOST_BANDS ? [] : banded;
      const ys = [...shown.flatMap(({ points }) => points.map(([, y]) => y)), ...shaded.flatMap(({ band }) => band.flat())].filter((y) => y !== null);
      const [low, high] = nice(Math.min(...ys, ...(this.fromZero ? [0] : [])), Math.max(...ys, ...(this.fromZero ? [0] : [])));
      const [first, last] = [this.xs[0], this.xs.at(-1)];
      this.toX = (x) => left + (last > first ? (x - first) / (last - first) : .5) * (width - left - right);
      const toY = (y) => top + (high - y) / (high - low || 1) * (height - top - bottom);
      this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
      this.svg.replaceChildren(...this.frame(toY, [low, high], [left, width - right, height - bottom]));
      if (!ys.length) return;
      for (const { name, points, band } of shaded) {
        const edge = (end) => points.map(([x], i) => [this.toX(x), toY(band[i][end])].join());
        const area = element("svg:polygon", { points: [...edge(0), ...edge(1).reverse()].join(" "), "fill-opacity": ".16" });
        area.style.fill = styleOf(name).stroke;
        this.svg.append(area);
      }
      for (const { name, points } of shown) {
        const style = styleOf(name), pieces = [[]];
        for (const [x, y] of points) y === null ? pieces.push([]) : pieces.at(-1).push([this.toX(x), toY(y)]);
        for (const piece of pieces.filter((part) => part.length)) {
          this.svg.append(curve(style, piece));
          if (points.length <= 40) this.svg.append(...piece.map(([x, y]) => marker(style, x, y)));
        }
      }
      this.rule = element("svg:line", { class: "axis", y1: top, y2: height - bottom, visibility: "hidden" });
      this.svg.append(this.rule);
      if (this.at !== null) this.read(this.at);
    }

    frame(toY, [low, high], [left, right, bottom]) {
      const parts = [], size = step(high - low, 8);
      for (let i = 0; low + i * size <= high + size / 2; i++) {
        const value = low + i * size, y = toY(value);
        parts.push(element("svg:line", { class: Math.abs(value) < size / 1e6 ? "axis" : "grid", x1: left, x2: right, y1: y, y2: y }));
        parts.push(element("svg:text", { x: left - 6, y: y + 4, "text-anchor": "end" }, short(Math.abs(value) < size / 1e6 ? 0 : value)));
      }
      const most = Math.max(2, Math.floor((right - left) / 48)), every = Math.ceil(this.xs.length / most);
      for (const x of this.xs.filter((_, i) => i % every === 0)) {
        parts.push(element("svg:text", { x: this.toX(x), y: bottom + 16, "text-anchor": "middle" }, short(x)));
      }
      if (this.units && this.units !== "1") parts.push(element("svg:text", { x: left - 6, y: 10, "text-anchor": "end" }, this.units));
      parts.push(element("svg:text", { x: (left + right) / 2, y: bottom + 34, "text-anchor": "middle" }, this.labelX));
      return parts;
    }

    point(event) {
      const x = event.clientX - this.svg.getBoundingClientRect().left;
      this.read(this.xs.reduce((best, value) => Math.abs(this.toX(value) - x) < Math.abs(this.toX(best) - x) ? value : best));
    }

    read(x) {
      this.at = x;
      for (const [key, value] of [["x1", this.toX(x)], ["x2", this.toX(x)], ["visibility", "visible"]]) this.rule?.setAttribute(key, value);
      const values = this.series.filter(({ name }) => !this.hidden.has(name))
        .map(({ name, points }) => [name, points.find(([where]) => where === x)?.[1] ?? null])
        .filter(([, y]) => y !== null).sort(([, a], [, b]) => a - b);
      this.readout.textContent = `${this.stepText(x)}: ` + values.map(([name, y]) => `${name} ${withUnits(short(y), this.units)}`).join(", ");
    }
  }

  // --- sections ---

  const heads = (texts) => element("tr", {}, ...texts.map((text) => element("th", { scope: "col" }, text)));

  /** The table of how far each model is from the best one, and whether that is more than luck. */
  function tellDifferences({ reference, rows }, units, interval) {
    const verdicts = { reference: "least RMSE", better: `better than ${reference}`, worse: `worse than ${reference}` };
    const table = byId("significance-table");
    byId("significance").hidden = false;
    byId("significance-note").textContent = `RMSE weighted by area, mean of all leads (${units}), and its difference from that of ${reference}: ${interval}. ` +
      "Start times are drawn anew in blocks longer than errors stay alike; how a model would fare if it were trained again is not in the interval.";
    table.tHead.replaceChildren(heads(["Model", "RMSE", "Difference", "Interval", "p", "Verdict"]));
    table.tBodies[0].replaceChildren(...rows.map(({ name, numbers: [score, difference, lower, upper, p], note }) => {
      const known = note !== "reference", signed = (value) => (value > 0 ? "+" : "") + fixed(value, 3);
      const cells = [fixed(score, 3), known ? signed(difference) : "", known ? `${signed(lower)} to ${signed(upper)}` : "",
        known ? (p < .001 ? "< 0.001" : fixed(p, 3)) : "", verdicts[note] ?? `≈ ${note}`];
      return element("tr", {}, element("th", { scope: "row" }, name), ...cells.map((text) => element("td", {}, text)));
    }));
  }

  const sections = {
    scores() {
      const { models, leads, metrics, over, compared } = run.scores;
      const chart = new Chart(byId("score-curves"), "Lead time (hours)", (lead) => `+${lead} h`);
      fill(byId("metric"), metrics.map(({ name, units }) => [name, withUnits(name, units === "1" ? "" : `(${units})`)]));
      fill(byId("over"), over.map(({ label }, i) => [i, label]));
      if (compared && metrics.some(({ name }) => name === compared.measure)) byId("metric").value = compared.measure;
      const goodness = { low: (v) => v, high: (v) => -v, zero: Math.abs, one: (v) => Math.abs(v - 1) };
      const hints = { low: "Lower is better.", high: "Higher is better.", zero: "Best at 0.", one: "Best at 1." };
      const interval = "95 %, block bootstrap over start times";
      const update = () => {
        const metric = byId("metric").value, part = over[byId("over").value];
        const { label, units, better } = metrics.find(({ name }) => name === metric);
        const values = part.values[metric] ?? [], bands = part.bands?.[metric];
        const many = models.filter((name) => !run.baselines.includes(name)).length > MOST_BANDS;
        byId("metric-meaning").textContent = `${label}. ${hints[better]}` + (bands ? ` Shaded${many ? ", where six or fewer are chosen" : ""}: interval of models that were trained, ${interval}.` : "");
        const there = models.map((name, i) => ({
          name, points: leads.map((lead, j) => [lead, values[i]?.[j] ?? null]), band: bands && !run.baselines.includes(name) ? leads.map((_, j) => [bands[0][i][j], bands[1][i][j]]) : undefined,
        })).filter(({ points }) => points.some(([, y]) => y !== null));
        chart.show(there, label, units, better === "low" || better === "zero");
        const rows = there.map(({ name, points }) => {
          const numbers = points.map(([, y]) => y);
          return { name, cells: [numbers.includes(null) ? null : numbers.reduce((a, b) => a + b) / numbers.length, ...numbers] };
        });
        const rank = (value) => value === null ? Infinity : goodness[better](value);
        rows.sort((a, b) => rank(a.cells[0]) - rank(b.cells[0]));
        const best = (rows[0]?.cells ?? []).map((_, column) => Math.min(...rows.map(({ cells }) => rank(cells[column]))));
        const tested = compared && metric === compared.measure && part === over[0];
        const alike = (name, column) => {
          const row = tested && compared.rows.find((one) => one.name === name);
          return row && [row.note, ...row.leads][column] === "not distinguishable";
        };
        const table = byId("score-table");
        table.caption.textContent = `${withUnits(metric, units === "1" ? "" : `(${units})`)}, ${part.label}: mean of all leads, and each lead`;
        table.tHead.replaceChildren(heads(["Model", "Mean", ...leads.map((lead) => `+${lead} h`)]));
        table.tBodies[0].replaceChildren(...rows.map(({ name, cells }) => element("tr", {}, element("th", { scope: "row" }, name),
          ...cells.map((value, column) => {
            const marks = [["best", value !== null && rank(value) === best[column]], ["alike", alike(name, column)]];
            return element("td", { class: marks.filter(([, set]) => set).map(([mark]) => mark).join(" ") }, value === null ? "" : fixed(value, 3));
          }))));
        byId("score-note").textContent = !rows.length ? "This score is not known of parts: it belongs to whole fields." : "★ best of its column." +
          (tested ? ` ≈ not distinguishable from ${compared.reference}, the best on average (${interval}).` : "") +
          (compared && !tested ? ` What is more than luck is known of ${compared.measure} over the whole region and time.` : "");
      };
      for (const input of [byId("metric"), byId("over")]) input.addEventListener("change", update);
      update();
      if (compared) tellDifferences(compared, metrics.find(({ name }) => name === compared.measure)?.units ?? "1", interval);
      byId("headline").textContent = `${models.length} models and baselines at leads of ${leads[0]} to ${leads.at(-1)} hours.`;
    },

    async forecasts() {
      const part = run.forecasts, { starts, leads, grid } = part, size = grid.latitude.length * grid.longitude.length;
      const truth = part.truth && await unpack(part.truth), fields = {}, reaches = {};
      const panel = (id) => new FieldMap(byId(id).querySelector("canvas"), grid);
      if (!truth) for (const id of ["panel-truth", "panel-error"]) byId(id).remove();
      const maps = truth ? { truth: panel("panel-truth"), forecast: panel("panel-forecast"), error: panel("panel-error") }
        : { forecast: panel("panel-forecast") };
      fill(byId("forecast-model"), part.models.map((name) => [name, name]));
      const [model, start, lead] = ["forecast-model", "start", "lead"].map(byId);
      [start.max, lead.max] = [starts.length - 1, leads.length - 1];
      [start.value, lead.value] = [Math.floor(starts.length / 2), leads.length - 1];
      const weights = grid.latitude.flatMap((value) => Array(grid.longitude.length).fill(Math.cos(value * Math.PI / 180)));
      let cursor = null, current = {};
      const say = () => {
        const { seen, said, error } = current;
        let mean = [0, 0, 0];
        for (let i = 0; error && i < size; i++) {
          if (Number.isFinite(error[i])) mean = [mean[0] + weights[i], mean[1] + weights[i] * error[i], mean[2] + weights[i] * Math.abs(error[i])];
        }
        const whole = error && mean[0] ? `Mean absolute error ${fixed(mean[2] / mean[0], 2)} ${part.differences}, bias ${fixed(mean[1] / mean[0], 2)} ` +
          `${part.differences}, weighted by area. ` : "";
        const here = cursor === null ? "Point at a map, or use the arrow keys on the first, to read its values."
          : `${place(...maps.forecast.where(cursor))}: ` + [["truth", seen, part.units], ["forecast", said, part.units], ["error", error, part.differences]]
            .filter(([, values]) => values).map(([name, values, units]) => `${name} ${withUnits(fixed(values[cursor]), units)}`).join(", ");
        byId("forecast-readout").textContent = whole + here;
      };
      const update = async () => {
        const name = model.value, said = fields[name] ??= await unpack(part.fields[name]);
        if (name !== model.value) return; // another was chosen in the meantime
        const first = start.value * leads.length, from = (first + Number(lead.value)) * size;
        const all = [truth, said].filter(Boolean).flatMap((values) => Array.from(values.subarray(first * size, (first + leads.length) * size)));
        const sorted = Float32Array.from(all), [low, high] = nice(percentile(sorted, .001), percentile(sorted, .999));
        const scale = { table: PALETTES[part.units === "°C" ? "temperature" : "viridis"], low, high };
        current = { said: said.subarray(from, from + size), seen: truth?.subarray(from, from + size) };
        const valid = new Date(Date.parse(starts[start.value]) + leads[lead.value] * 36e5).toISOString();
        const when = `for ${moment(valid)}`;
        start.nextElementSibling.value = moment(starts[start.value]);
        lead.nextElementSibling.value = `+${leads[lead.value]} h`;
        start.setAttribute("aria-valuetext", moment(starts[start.value]));
        lead.setAttribute("aria-valuetext", `${leads[lead.value]} hours`);
        maps.forecast.show(current.said, scale, `Map of the forecast of ${name} ${when}`);
        bar(byId("panel-forecast").querySelector(".bar"), scale, part.units);
        if (truth) {
          reaches[name] ??= nice(0, percentile(truth.map((value, i) => Math.abs(said[i] - value)), .99))[1];
          const reach = reaches[name], errors = { table: PALETTES.difference, low: -reach, high: reach };
          current.error = current.said.map((value, i) => value - current.seen[i]);
          maps.truth.show(current.seen, scale, `Map of the truth ${when}`);
          maps.error.show(current.error, errors, `Map of forecast minus truth ${when}`);
          bar(byId("panel-truth").querySelector(".bar"), scale, part.units);
          bar(byId("panel-error").querySelector(".bar"), errors, part.differences);
        }
        byId("panel-forecast").querySelector("figcaption").textContent = `Forecast of ${name} ${when}`;
        say();
      };
      explore(Object.values(maps), { hover: (node) => { cursor = node; say(); }, start: () => cursor ?? Math.floor(size / 2) });
      for (const input of [model, start, lead]) input.addEventListener("input", update);
      byId("forecast-note").textContent = `${part.variable}. ${starts.length} of ${part.of} start times.${thinned(grid)} ` +
        `Values in steps of ${short(Math.max(...Object.values(part.fields).map((field) => field.step)))}.` +
        (truth ? "" : " The truth is not in this run.") + (part.leftout.length ? ` On other times or grids, not shown: ${part.leftout.join(", ")}.` : "");
      await update();
    },

    async errors() {
      const part = run.errors, { grid, models, leads, kinds } = part, size = grid.latitude.length * grid.longitude.length;
      const [kind, lead, host] = ["error-kind", "error-lead", "error-maps"].map(byId);
      fill(kind, kinds.map(({ name, label }) => [name, label.replace(/, of each cell$/, "")]));
      lead.max = leads.length - 1;
      lead.value = lead.max;
      host.replaceChildren(...models.map((name) => element("figure", {}, element("figcaption", {}, name), element("canvas"))));
      const figures = [...host.children], maps = figures.map((figure) => new FieldMap(figure.lastChild, grid)), unpacked = {};
      let cursor = null, shown = [], unsure = [];
      const say = () => {
        const { units } = kinds.find(({ name }) => name === kind.value);
        const told = models.flatMap((name, i) => shown[i] ? [`${name} ${withUnits(fixed(shown[i][cursor], 2), units)}${unsure[i]?.[cursor] ? " (may be luck)" : ""}`] : []);
        byId("error-readout").textContent = cursor === null ? "Point at a map, or use the arrow keys on the first, to read its values."
          : `${place(...maps[0].where(cursor))}: ${told.join(", ")}`;
      };
      const update = async () => {
        const { name, label, units, fields, models: own = models, unsure: mask } = kinds.find((other) => other.name === kind.value);
        const [values, masks] = unpacked[name] ??= await Promise.all([unpack(fields), mask ? bytes(mask) : null]);
        if (name !== kind.value) return;
        const still = own !== models, steps = still ? 1 : leads.length; // skill is a mean over the leads, of models of its own
        const from = (model) => (own.indexOf(model) * steps + (still ? 0 : Number(lead.value))) * size;
        shown = models.map((model) => own.includes(model) ? values.subarray(from(model), from(model) + size) : null);
        unsure = models.map((model, i) => masks && shown[i] && masks.subarray(from(model), from(model) + size));
        const trained = shown.filter((found, i) => found && !run.baselines.includes(models[i])); // skill of others may be far below
        const signed = still || fields.offset < 0, sizes = still && trained.length ? trained.flatMap((found) => [...found]) : values;
        const high = Math.min(nice(0, percentile(Float32Array.from(sizes, Math.abs), .99))[1], still ? 1 : Infinity);
        const scale = signed ? { table: PALETTES.difference, low: -high, high, flip: still } : { table: PALETTES.viridis, low: 0, high };
        lead.disabled = still;
        lead.nextElementSibling.value = still ? "all" : `+${leads[lead.value]} h`;
        lead.setAttribute("aria-valuetext", still ? "mean of all leads" : `${leads[lead.value]} hours`);
        const when = still ? "" : ` at +${leads[lead.value]} hours`;
        figures.forEach((figure, i) => { figure.hidden = !shown[i]; });
        maps.forEach((map, i) => shown[i] && map.show(shown[i], scale, `Map of the ${label} of ${models[i]}${when}`, unsure[i]));
        bar(byId("error-bar"), scale, units === "1" ? "" : units);
        byId("error-note").textContent = `One colour scale for all models${still ? ", blue is better; hatched where the difference may be luck (block " +
          "bootstrap over start times, false discovery rate 10 %)" : " and leads, up to the 99th percentile"}.${thinned(grid)}`;
        say();
      };
      explore(maps, { hover: (node) => { cursor = node; say(); }, start: () => cursor ?? Math.floor(size / 2) });
      for (const input of [kind, lead]) input.addEventListener("input", update);
      await update();
    },

    async correlations() {
      const part = run.correlations, { grid, models } = part, size = grid.latitude.length * grid.longitude.length;
      const map = new FieldMap(byId("panel-links").querySelector("canvas"), grid), unpacked = {};
      const [model, latitude, longitude, distance] = ["link-model", "link-latitude", "link-longitude", "link-distance"].map(byId);
      fill(model, Object.keys(models).map((name) => [name, name]));
      const direction = () => document.querySelector("[name=direction]:checked").value;
      let chosen = Object.values(models)[0].first, weights = null;

      const load = async ({ count, scale, codes, columns }) => ({
        count, codes: await bytes(codes), scale: new Float32Array((await bytes(scale)).buffer),
        columns: columns ? new Uint32Array((await bytes(columns)).buffer) : null,
      });
      const field = ({ count, codes, scale, columns }, node, heard) => {
        const values = new Float32Array(size);
        const weight = (row, at) => (codes[at] / 255) ** 2 * scale[row];
        if (!heard) {
          for (let i = 0; i < count; i++) values[columns ? columns[node * count + i] : i] = weight(node, node * count + i);
        } else if (!columns) {
          for (let row = 0; row < size; row++) values[row] = weight(row, row * count + node);
        } else {
          for (let at = 0; at < columns.length; at++) if (columns[at] === node) values[Math.floor(at / count)] = weight(Math.floor(at / count), at);
        }
        return values;
      };
      const kilometres = ([lat1, lon1], [lat2, lon2]) => {
        const [a, b, c] = [lat1, lat2, lon2 - lon1].map((value) => value * Math.PI / 180);
        const half = Math.sin((b - a) / 2) ** 2 + Math.cos(a) * Math.cos(b) * Math.sin(c / 2) ** 2;
        return 2 * 6371.229 * Math.asin(Math.min(1, Math.sqrt(half)));
      };
      const list = () => {
        const here = map.where(chosen);
        const far = Array.from(weights, (weight, node) => ({ weight, node })).filter(({ weight }) => weight > 0).sort((a, b) => b.weight - a.weight)
          .map((link) => ({ ...link, km: kilometres(here, map.where(link.node)) })).filter(({ km }) => km >= distance.value).slice(0, 8);
        byId("link-table").tBodies[0].replaceChildren(...far.map(({ node, km, weight }) => element("tr", {},
          element("th", { scope: "row" }, place(...map.where(node))), element("td", {}, km.toFixed(0)), element("td", {}, short(weight)))));
        return far[0];
      };
      const say = (node) => {
        const here = place(...map.where(chosen)), heard = direction() === "heard";
        const [listener, source] = node === null ? [] : heard ? [place(...map.where(node)), here] : [here, place(...map.where(node))];
        byId("link-readout").textContent = node === null ? `Place: ${here}.` : `${listener} listens to ${source}: weight ${short(weights[node])}`;
      };
      const update = async () => {
        const name = model.value, links = unpacked[name] ??= await load(models[name]);
        if (name !== model.value) return;
        const heard = direction() === "heard", here = place(...map.where(chosen));
        weights = field(links, chosen, heard);
        const high = percentile(weights.slice(), .995) || Math.max(...weights) || 1;
        const scale = { table: PALETTES.magma, low: 0, high, flip: !dark.matches };
        const caption = `${name}: ${heard ? `what listens to ${here}` : `what ${here} listens to`}`;
        map.star = chosen;
        map.show(weights, scale, `Map, ${caption}`);
        bar(byId("panel-links").querySelector(".bar"), scale, "learned weight above the floor");
        byId("panel-links").querySelector("figcaption").textContent = caption;
        [latitude.value, longitude.value] = map.where(chosen);
        const strongest = list();
        say(null);
        if (strongest) byId("link-readout").textContent += ` Strongest link of at least ${distance.value} km: ${place(...map.where(strongest.node))}, ` +
          `${strongest.km.toFixed(0)} km, weight ${short(strongest.weight)}.`;
        const { count } = links;
        byId("link-note").textContent = `A softmax gives every pair a share; the least weight of each row, the floor, is taken off. ` +
          `1/N = ${short(1 / size)}.` + (count < size ? ` Of each row the ${count} largest of ${size} weights are in this page.` : "") +
          (part.leftout.length ? ` Too large or on another grid, not shown: ${part.leftout.join(", ")}.` : "");
      };
      const choose = (node) => {
        chosen = node;
        return update();
      };
      explore([map], { hover: say, choose, start: () => chosen });
      for (const input of [model, distance, ...document.querySelectorAll("[name=direction]")]) input.addEventListener("change", update);
      for (const input of [latitude, longitude]) {
        input.addEventListener("change", () => choose(map.nearest(Number(latitude.value), Number(longitude.value))));
      }
      repaint.add(update);
      const follow = () => {
        const found = /at=(-?[\d.]+),(-?[\d.]+)/.exec(location.hash);
        if (found) choose(map.nearest(Number(found[1]), Number(found[2])));
      };
      addEventListener("hashchange", follow);
      await update();
      follow();
    },

    training() {
      const { models, columns } = run.training;
      const chart = new Chart(byId("training-curves"), "Epoch", (epoch) => `Epoch ${epoch}`);
      fill(byId("training-column"), columns.map((name) => [name, name.replaceAll("_", " ")]));
      const update = () => {
        const column = byId("training-column").value;
        const series = Object.entries(models).filter(([, log]) => log[column])
          .map(([name, log]) => ({ name, points: log.epoch.map((epoch, i) => [epoch, log[column][i]]) }));
        chart.show(series, column.replaceAll("_", " "), "", true);
      };
      byId("training-column").addEventListener("change", update);
      update();
    },
  };

  // --- several variables: their sections are drawn anew, from the page as it was ---

  const drawn = ["scores", "forecasts", "errors"];
  const untouched = Object.fromEntries(drawn.map((name) => [name, byId(name)?.cloneNode(true)]));
  const found = { [run.variable]: Object.fromEntries(drawn.map((name) => [name, run[name]])), ...run.further };
  fill(byId("variable"), Object.keys(found).map((name) => [name, name]));
  byId("variables").hidden = Object.keys(found).length < 2;
  byId("variable").addEventListener("change", async () => {
    for (const name of drawn.filter((part) => untouched[part])) {
      run[name] = found[byId("variable").value][name];
      byId(name).replaceWith(untouched[name].cloneNode(true));
      byId(name).hidden = !run[name];
      if (run[name]) await sections[name]();
    }
  });

  const nav = document.querySelector("nav");
  for (const { id, firstElementChild } of document.querySelectorAll("main > section")) {
    nav.append(element("a", { href: `#${id}` }, firstElementChild.textContent));
  }
  for (const [name, draw] of Object.entries(sections)) if (run[name]) await draw();
  document.documentElement.dataset.ready = "true";
})();
