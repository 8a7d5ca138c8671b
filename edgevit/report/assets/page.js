"use strict";
(() => {
  const { tables, details, plots, profiles } = JSON.parse(document.getElementById("data").textContent);
  const NOTHING = "–";
  const ROWS = 100;
  // More points than this are painted, not built of elements that a reader could step through.
  const PAINTED = 600;
  const PANELS = 12;
  const PALETTES = {
    light: ["#0b5cad", "#bf4a00", "#00795a", "#9c3f7d", "#7d6200", "#5a55c9", "#5f6770", "#b3261e"],
    dark: ["#62b2f5", "#ff9f5f", "#45cf9f", "#ea9bcb", "#e2c04e", "#a8a5ff", "#bcc4cc", "#ff8a80"],
  };
  const SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down"];
  const GLYPHS = {
    circle: "M8 2a6 6 0 1 0 .01 0z", square: "M3 3h10v10h-10z", "triangle-up": "M8 2l6.5 12h-13z",
    diamond: "M8 1l5 7-5 7-5-7z", cross: "M6 2h4v4h4v4h-4v4h-4v-4h-4v-4h4z",
    "triangle-down": "M8 14l6.5-12h-13z",
  };
  const root = document.documentElement;

  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
      else if (value === true) made.setAttribute(name, "");
      else if (value !== false && value !== null) made.setAttribute(name, value);
    }
    made.append(...children.filter((child) => child !== null));
    return made;
  }

  // -- values -------------------------------------------------------------------------------------

  function value(table, key, row) {
    const values = table.values[key];
    if (values === undefined) return null;
    if (!values.index) return values[row];
    return values.index[row] < 0 ? null : values.words[values.index[row]];
  }

  /** So many significant digits, never an exponent. */
  function significant(number, digits) {
    if (number === 0) return "0";
    const rounded = Number(number.toPrecision(digits));
    const places = digits - 1 - Math.floor(Math.log10(Math.abs(rounded)));
    return places > 0 ? rounded.toFixed(Math.min(places, 20)) : number.toFixed(0);
  }

  function shown(table, column, row) {
    const found = value(table, column.key, row);
    if (found === null || found === undefined) return NOTHING;
    if (column.high) {
      const high = value(table, column.high, row);
      const level = value(table, "interval_level", row);
      const words = `${significant(found, column.digits)}–${significant(high, column.digits)}`;
      return level && parseFloat(level) < 95 ? `${words} (${level})` : words;
    }
    if (column.text) return value(table, column.text, row);
    if (column.kind !== "number") return String(found);
    const text = significant(found, column.digits);
    return column.key === "median_ms" && value(table, "unsteady", row) ? `${text} †` : text;
  }

  /** A number for each row by which it is sorted; null goes last either way. */
  function ranks(table, key) {
    const values = table.values[key];
    if (!values.index) return values;
    const compare = new Intl.Collator("en", { numeric: true }).compare;
    const sorted = values.words.map((_, i) => i);
    sorted.sort((a, b) => compare(values.words[a], values.words[b]));
    const rank = [];
    sorted.forEach((word, place) => { rank[word] = place; });
    return values.index.map((word) => (word < 0 ? null : rank[word]));
  }

  // -- tables -------------------------------------------------------------------------------------

  class Table {
    constructor(host) {
      this.name = host.dataset.table;
      this.table = tables[this.name];
      this.columns = this.table.columns;
      this.all = Array.from({ length: this.table.size }, (_, i) => i);
      this.passes = () => true;
      this.sorted = this.all;
      this.first = 0;
      this.rows = ROWS;
      this.build(host);
      this.show();
    }

    build(host) {
      this.heads = this.columns.map((column) => element(
        "th",
        { scope: "col", "aria-sort": "none", class: this.classes(column) },
        element("button", { type: "button", onclick: () => this.sort(column) }, column.label),
      ));
      this.body = element("tbody");
      this.element = element(
        "table", {},
        element("caption", {}, element("span", {}, host.dataset.caption)),
        element("thead", {}, element("tr", {}, ...this.heads)),
        this.body,
      );
      const label = `Table: ${host.dataset.caption}`;
      host.append(element(
        "div", { class: "frame", role: "region", tabindex: "0", "aria-label": label }, this.element,
      ), this.pager());
    }

    pager() {
      this.status = element("span", { role: "status" });
      this.back = element("button", { type: "button", onclick: () => this.turn(-1) }, "Previous");
      this.next = element("button", { type: "button", onclick: () => this.turn(1) }, "Next");
      const sizes = [ROWS, 500, this.table.size].filter((n, i) => i === 2 || n < this.table.size);
      const size = element("select", { onchange: (event) => this.resize(Number(event.target.value)) },
        ...sizes.map((n) => element("option", { value: n }, n === this.table.size ? "all" : String(n))));
      const pages = this.table.size > ROWS;
      return element("div", { class: "pager" },
        pages ? this.back : null, this.status, pages ? this.next : null,
        pages ? element("label", {}, "rows at once ", size) : null);
    }

    classes(column) {
      const names = [];
      if (column.kind !== "words") names.push("number");
      if (column.minor) names.push("minor");
      return names.join(" ") || null;
    }

    sort(column) {
      const head = this.heads[this.columns.indexOf(column)];
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of this.heads) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rank = ranks(this.table, column.key);
      const sign = down ? -1 : 1;
      this.sorted = [...this.all].sort((a, b) => {
        if (rank[a] === null || rank[b] === null) return (rank[a] === null) - (rank[b] === null);
        return sign * (rank[a] - rank[b]) || a - b;
      });
      this.first = 0;
      this.show();
    }

    filter(passes) {
      this.passes = passes;
      this.first = 0;
      this.show();
    }

    turn(by) {
      this.first += by * this.rows;
      this.show();
    }

    resize(rows) {
      this.rows = rows;
      this.first = 0;
      this.show();
    }

    show() {
      const chosen = this.sorted.filter(this.passes);
      const rows = chosen.slice(this.first, this.first + this.rows);
      this.body.replaceChildren(...rows.map((row) => this.row(row)));
      if (!rows.length) {
        const words = "No row passes the filters; unsteady rows are hidden until asked for.";
        this.body.append(element("tr", {}, element("td", { colspan: this.columns.length }, words)));
      }
      const last = this.first + rows.length;
      const hidden = this.table.size - chosen.length;
      const total = chosen.length.toLocaleString("en");
      const range = rows.length === chosen.length ? total : `${this.first + 1} to ${last} of ${total}`;
      this.status.textContent = `${range} row${chosen.length === 1 ? "" : "s"}` +
        (hidden ? `, ${hidden.toLocaleString("en")} hidden` : "");
      this.back.disabled = this.first === 0;
      this.next.disabled = last >= chosen.length;
    }

    row(row) {
      const [first, ...others] = this.columns;
      const name = shown(this.table, first, row);
      const tr = element("tr");
      tr.append(element("th", { scope: "row" }, this.table.values.command
        ? element("button", {
          type: "button", "aria-expanded": "false", onclick: (event) => this.open(event, tr, row),
        }, name)
        : name, this.beneath(row)));
      for (const column of others) tr.append(this.cell(column, row));
      return tr;
    }

    /** What tells this row from others of its name, where there is no room for columns. */
    beneath(row) {
      const words = this.columns.filter((column) => column.beneath).map((column) => {
        const text = shown(this.table, column, row);
        return column.kind === "count" ? `${column.label} ${text}` : text;
      });
      return words.length ? element("div", { class: "beneath narrow" }, words.join(", ")) : null;
    }

    cell(column, row) {
      const text = shown(this.table, column, row);
      let names = this.classes(column) ?? "";
      if (column.key === "status") names += ` ${text}`;
      if (column.kind === "words" && text.length > 40) names += " long";
      return element("td", { class: names.trim() || null }, text);
    }

    /** The circumstances of a row, under it. */
    open(event, tr, row) {
      const button = event.currentTarget;
      const open = button.getAttribute("aria-expanded") === "true";
      button.setAttribute("aria-expanded", String(!open));
      if (open) {
        tr.nextElementSibling.remove();
        return;
      }
      const list = element("dl");
      const add = (label, text) => list.append(element("dt", {}, label), element("dd", {}, text));
      this.columns.forEach((column, i) => {
        const text = shown(this.table, column, row);
        const hidden = this.heads[i].offsetParent === null;
        if (hidden && text !== NOTHING && column.key !== "verification") add(column.label, text);
      });
      for (const [key, label] of Object.entries(details)) {
        const found = value(this.table, key, row);
        if (found === null) continue;
        const exact = typeof found !== "number" || Number.isInteger(found);
        add(label, exact ? String(found) : significant(found, 4));
      }
      tr.after(element("tr", { class: "detail" },
        element("td", { colspan: this.columns.length }, list)));
    }
  }

  // -- filters ------------------------------------------------------------------------------------

  const CHOICES = ["device", "format", "precision", "threads", "batch"];

  class Filters {
    constructor(host, onchange) {
      this.table = tables.measured;
      this.onchange = onchange;
      const change = () => this.change();
      this.search = element("input", { type: "search", id: "search", oninput: change });
      host.append(element("label", {}, "Model or block", this.search));
      this.selects = {};
      for (const key of CHOICES) {
        const found = this.distinct(key);
        if (found.length < 2) continue;
        this.selects[key] = element("select", { id: `choose-${key}`, onchange: change },
          element("option", { value: "" }, "all"),
          ...found.map((v) => element("option", { value: v }, String(v))));
        const label = this.table.columns.find((column) => column.key === key).label;
        host.append(element("label", {}, label, this.selects[key]));
      }
      this.unsteady = element("input", { type: "checkbox", id: "unsteady", onchange: change });
      const count = this.table.values.unsteady.reduce((sum, flag) => sum + flag, 0);
      if (count) {
        host.append(element("label", { class: "check" }, this.unsteady, `Unsteady rows too (${count})`));
      }
      const wide = element("input", {
        type: "checkbox",
        onchange: (event) => {
          root.classList.toggle("all", event.target.checked);
        },
      });
      host.append(element("label", { class: "check narrow" }, wide, "All columns"));
    }

    distinct(key) {
      const values = this.table.values[key];
      const found = values.index ? values.words : [...new Set(values)].filter((v) => v !== null);
      return values.index ? found : found.sort((a, b) => a - b);
    }

    passes() {
      const words = this.search.value.trim().toLowerCase();
      const chosen = Object.entries(this.selects).filter(([, select]) => select.value !== "");
      return (row) =>
        (this.unsteady.checked || !this.table.values.unsteady[row]) &&
        (!words || value(this.table, "model", row).toLowerCase().includes(words)) &&
        chosen.every(([key, select]) => String(value(this.table, key, row)) === select.value);
    }

    change() {
      clearTimeout(this.later);
      this.later = setTimeout(() => this.onchange(this.passes()), 80);
    }
  }

  // -- plots --------------------------------------------------------------------------------------

  const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const scheme = () => root.dataset.scheme ?? (system.matches ? "dark" : "light");

  function config() {
    const font = getComputedStyle(document.body).fontFamily;
    const words = { labelColor: css("--quiet"), titleColor: css("--text"), labelFont: font, titleFont: font };
    return {
      axis: {
        ...words, labelFontSize: 12, titleFontSize: 12, titleFontWeight: 500,
        gridColor: css("--line"), domainColor: css("--quiet"), tickColor: css("--quiet"),
      },
      style: { cell: { stroke: css("--line") } },
    };
  }

  class Plot {
    constructor(container, hover) {
      this.container = container;
      this.hover = hover;
    }

    /** One drawing after the other: an earlier one may still be under way. */
    draw(...picture) {
      this.last = (this.last ?? Promise.resolve()).then(() => this.render(...picture));
      return this.last;
    }

    async render(name, points, description, domain = null) {
      this.container.dataset.points = points.length;
      if (!points.length) {
        this.shown?.finalize();
        this.container.replaceChildren(
          element("p", { class: "quiet" }, "Nothing to plot with these filters."));
        return;
      }
      const spec = structuredClone(plots[name]);
      spec.description = description;
      spec.data.find((set) => set.name === "points").values = points;
      if (domain) spec.scales.find((scale) => scale.name === "y").domain = domain;
      const tell = (words) => { this.hover.textContent = words ?? ""; };
      this.shown?.finalize();
      this.shown = await vegaEmbed(this.container, spec, {
        mode: "vega",
        renderer: points.length > PAINTED ? "canvas" : "svg",
        actions: false,
        defaultStyle: false,
        config: config(),
        tooltip: (_, event, item, words) => tell(words),
      });
      this.shown.view.addEventListener("click", (event, item) => tell(item?.datum?.words));
    }
  }

  function point(x, row, series) {
    const table = tables.measured;
    const get = (key) => value(table, key, row);
    const median = significant(get("median_ms"), 4);
    const words = [
      get("model"), get("input"), get("format"), get("precision"), get("device"),
      `threads ${get("threads")}`, `batch ${get("batch")}`, `${median} ms`,
      get("unsteady") ? `not steady (${get("status")})` : null,
    ].filter(Boolean).join(", ");
    const [low, high] = [get("interval_low_ms"), get("interval_high_ms")];
    return { x, y: get("median_ms"), low, high, words, ...series };
  }

  /** Names to colours and shapes, in the order of the names. */
  function styles(names) {
    const palette = PALETTES[scheme()];
    return new Map(names.map((series, i) => {
      const turn = Math.floor(i / palette.length);
      return [series, {
        series, color: palette[i % palette.length], shape: SHAPES[((i % palette.length) + turn) % SHAPES.length],
      }];
    }));
  }

  function legend(host, chosen) {
    host.replaceChildren(...[...chosen.values()].map(({ series, color, shape }) => {
      const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      svg.setAttribute("viewBox", "0 0 16 16");
      svg.setAttribute("aria-hidden", "true");
      const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
      path.setAttribute("d", GLYPHS[shape]);
      path.setAttribute("fill", color);
      svg.append(path);
      return element("li", {}, svg, series);
    }));
  }

  /** The rows of the combination of keys that most rows have, and its values. */
  function commonest(rows, keys) {
    const groups = new Map();
    for (const row of rows) {
      const name = JSON.stringify(keys.map((key) => value(tables.measured, key, row)));
      if (!groups.has(name)) groups.set(name, []);
      groups.get(name).push(row);
    }
    let best = ["[]", []];
    for (const group of groups) if (group[1].length > best[1].length) best = group;
    return { rows: best[1], values: JSON.parse(best[0]), more: groups.size - 1 };
  }

  const timed = (passes, kind) => Array.from({ length: tables.measured.size }, (_, i) => i).filter(
    (row) => passes(row) && value(tables.measured, "median_ms", row) !== null &&
      value(tables.measured, "kind", row) === kind,
  );

  class CostPlots {
    constructor() {
      this.words = document.getElementById("cost-words");
      this.legend = document.getElementById("cost-legend");
      const hover = document.getElementById("cost-hover");
      this.plots = [...document.querySelectorAll("#cost .plot")].map((c) => new Plot(c, hover));
    }

    draw(passes) {
      const { rows, values, more } = commonest(timed(passes, "model"), ["threads", "batch"]);
      if (!rows.length) {
        this.words.textContent = "No steady model to plot: see the filters above.";
      } else {
        const [threads, batch] = values;
        this.words.textContent = `Models with threads ${threads}, batch ${batch}` +
          `${more ? "; choose others above" : ""}. Every point is a row of the table, with the ` +
          "interval of its median; both axes are logarithmic.";
      }
      const get = (key, row) => value(tables.measured, key, row);
      const several = (key) => new Set(rows.map((row) => get(key, row))).size > 1;
      const keys = ["device", "format", "precision"].filter(several);
      const name = (row) => keys.map((key) => get(key, row)).join(", ") || get("format", row);
      const chosen = styles([...new Set(rows.map(name))].sort());
      legend(this.legend, chosen);
      for (const plot of this.plots) {
        const kind = plot.container.dataset.plot;
        const key = kind === "params" ? "params_m" : "macs_g";
        const points = rows.filter((row) => get(key, row) > 0)
          .map((row) => point(get(key, row), row, chosen.get(name(row))));
        plot.draw(kind, points, `Latency against ${kind}: ${points.length} points, all in the table.`);
      }
    }
  }

  class BlockPlots {
    constructor(redraw) {
      this.words = document.getElementById("blocks-words");
      this.legend = document.getElementById("blocks-legend");
      this.panels = document.getElementById("blocks-panels");
      this.hover = document.getElementById("blocks-hover");
      this.axis = document.getElementById("blocks-axis");
      this.axis.addEventListener("change", redraw);
      this.plots = [];
    }

    draw(passes) {
      const get = (key, row) => value(tables.measured, key, row);
      const blocks = timed(passes, "block").filter((row) => get("n", row) !== null);
      const keys = ["device", "format", "precision", "threads", "batch"];
      const { rows, values, more } = commonest(blocks, keys);
      const over = this.axis.querySelector("input:checked").value;
      const [x, fixed] = over === "tokens" ? ["n", "d"] : ["d", "n"];
      const panels = this.group(rows, fixed);
      const left = Math.max(0, panels.length - PANELS);
      this.words.textContent = rows.length
        ? `Attention blocks on ${values[0]}, ${values[1]} ${values[2]}, threads ${values[3]}, batch ${values[4]}` +
          `${more ? "; choose others above" : ""}. All panels have one scale; both axes are ` +
          `logarithmic.${left ? ` ${left} more panels are left out.` : ""}`
        : "No steady block to plot: see the filters above.";
      const chosen = styles([...new Set(rows.map((row) => get("block", row)))].sort());
      legend(this.legend, chosen);
      for (const plot of this.plots) plot.shown?.finalize();
      const domain = this.domain(rows);
      this.plots = panels.slice(0, PANELS)
        .map(() => new Plot(element("div", { class: "plot" }), this.hover));
      this.panels.replaceChildren(...this.plots.map((plot, i) => element(
        "figure", {}, element("figcaption", {}, panels[i][0]), plot.container,
      )));
      this.plots.forEach((plot, i) => {
        const points = panels[i][1].map((row) => point(get(x, row), row, chosen.get(get("block", row))));
        points.sort((a, b) => a.x - b.x);
        plot.draw(over, points, `${panels[i][0]}: ${points.length} points, all in the table.`, domain);
      });
    }

    group(rows, fixed) {
      const get = (key, row) => value(tables.measured, key, row);
      const groups = new Map();
      for (const row of rows) {
        const rest = get("rest", row) ? `,${get("rest", row).replaceAll("-", " ")}` : "";
        const title = `${fixed.toUpperCase()} = ${get(fixed, row)}, ${get("h", row)} heads${rest}`;
        if (!groups.has(title)) groups.set(title, []);
        groups.get(title).push(row);
      }
      return [...groups].sort((a, b) => a[0].localeCompare(b[0], "en", { numeric: true }));
    }

    domain(rows) {
      const get = (key, row) => value(tables.measured, key, row);
      const low = rows.map((row) => get("interval_low_ms", row) ?? get("median_ms", row));
      const high = rows.map((row) => get("interval_high_ms", row) ?? get("median_ms", row));
      return rows.length ? [Math.min(...low), Math.max(...high)] : null;
    }
  }

  class ProfilePlots {
    constructor() {
      const make = (name) => new Plot(
        document.querySelector(`#profiles .plot[data-plot="${name}"]`),
        document.getElementById(`${name}-hover`),
      );
      this.operators = make("operators");
      this.roofline = make("roofline");
    }

    draw() {
      const operators = styles(profiles.order);
      const bare = new Map([...operators].map(([name, style]) => [name, { ...style, shape: "square" }]));
      const segments = profiles.segments.map((s) => ({ ...s, color: operators.get(s.series).color }));
      const used = new Set(segments.map((s) => s.series));
      legend(
        document.getElementById("operators-legend"),
        new Map([...bare].filter(([name]) => used.has(name))),
      );
      const bars = new Set(segments.map((s) => s.label)).size;
      this.operators.draw("operators", segments, `Shares of operators in ${bars} profiles; the table has them by kind.`);
      this.drawRoof();
    }

    drawRoof() {
      const kinds = styles([...new Set(profiles.points.map((p) => p.series))].sort());
      const points = profiles.points.map((p) => ({ ...p, ...kinds.get(p.series) }));
      legend(document.getElementById("roofline-legend"), kinds);
      this.roofline.draw(
        "roofline", [...points, ...this.roofs(points)],
        `Rates of ${points.length} kinds of work against ${profiles.roofs.length} machines' peaks.`,
      );
    }

    /** The corners of every machine's roof, over the intensities that there are. */
    roofs(points) {
      if (!points.length) return [];
      const [low, high] = [Math.min(...points.map((p) => p.x)), Math.max(...points.map((p) => p.x))];
      return profiles.roofs.flatMap(({ name, gflops, gbytes }) => {
        const ridge = gflops / gbytes;
        const ends = [Math.min(low, ridge), ridge, Math.max(high, ridge * 4)];
        return ends.map((x) => ({
          x, y: Math.min(gflops, x * gbytes), roof: true, series: `peak of ${name}`,
          color: getComputedStyle(root).getPropertyValue("--quiet").trim(), words: `peak of ${name}`,
        }));
      });
    }
  }

  // -- the page -----------------------------------------------------------------------------------

  const shownTables = new Map();
  for (const host of document.querySelectorAll(".table")) {
    shownTables.set(host.dataset.table, new Table(host));
  }

  let passes = () => true;
  const drawers = new Map();

  /** Plots are drawn when they come near, and again when rows or colours change. */
  function redraw(name) {
    const drawer = drawers.get(name);
    if (drawer?.near) drawer.plots.draw(passes);
  }
  const redrawAll = () => { for (const name of drawers.keys()) redraw(name); };

  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const drawer = drawers.get(entry.target.id);
      if (!entry.isIntersecting || drawer.near) continue;
      drawer.near = true;
      redraw(entry.target.id);
    }
  }, { rootMargin: "400px" });

  const makers = {
    cost: () => new CostPlots(), blocks: () => new BlockPlots(() => redraw("blocks")),
    profiles: () => new ProfilePlots(),
  };
  for (const [name, make] of Object.entries(makers)) {
    const section = document.getElementById(name);
    if (!section) continue;
    drawers.set(name, { plots: make(), near: false });
    watcher.observe(section);
  }

  const host = document.getElementById("filters");
  if (host) {
    const apply = (chosen) => {
      passes = chosen;
      shownTables.get("measured").filter(chosen);
      redrawAll();
    };
    apply(new Filters(host, apply).passes());
  }

  const toggle = document.getElementById("scheme");
  const name = () => {
    toggle.textContent = scheme() === "dark" ? "Light colours" : "Dark colours";
    redrawAll();
  };
  toggle.hidden = false;
  toggle.addEventListener("click", () => {
    root.dataset.scheme = scheme() === "dark" ? "light" : "dark";
    name();
  });
  system.addEventListener("change", name);
  name();
})();
