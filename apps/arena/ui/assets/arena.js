// The voter's stage. It holds a battle and its signed token, nothing else; every decision is the server's.
const KEPT = "palate-arena-battle", TICKET = "palate-arena-ticket";

class Answer extends Error {
  constructor(status, body) {
    super(body.message || "The server did not answer as expected.");
    Object.assign(this, { status, ...body });
  }
}

async function call(path, body, raw) {
  const request = body === undefined ? {} : {
    method: "POST",
    body: raw ? body : JSON.stringify(body),
    headers: raw ? {} : { "content-type": "application/json" },
  };
  let response;
  try {
    response = await fetch(path, { credentials: "same-origin", ...request });
  } catch {
    throw new Answer(0, { error: "offline", message: "The server cannot be reached. Your last acknowledged vote is safe." });
  }
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Answer(response.status, answer);
  return answer;
}

const wait = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

function start(stage) {
  const part = (name) => stage.querySelector(`[data-arena="${name}"]`);
  const state = { phase: "loading", battle: null, outcome: null, reasons: new Set(), busy: false, category: null, deadline: 0 };
  const dealt = new Map(); // chosen category -> battles not judged yet: fetched ahead, or set aside
  const zoom = { scale: 1, x: 0, y: 0 };
  let reveal_after = 10;

  // --- what is shown -------------------------------------------------------------------------------------------------

  function say(text, bad = false) {
    part("status").textContent = text;
    part("status").classList.toggle("bad", bad);
  }

  function enter(phase) {
    state.phase = stage.dataset.phase = phase;
    const judging = phase === "judging", voted = phase === "voted", revealed = phase === "revealed";
    for (const button of part("choices").children) {
      button.disabled = !judging;
      button.setAttribute("aria-pressed", String(state.outcome === button.dataset.outcome));
    }
    for (const chip of part("reasons").children) chip.disabled = !judging;
    part("skip").hidden = !judging;
    part("undo").hidden = part("reveal").hidden = part("countdown").hidden = !voted;
    part("next").hidden = !(revealed || phase === "stopped");
    part("blink").hidden = !state.battle || state.battle.kind !== "image" || phase === "loading";
    for (const side of stage.querySelectorAll(".side")) side.classList.toggle("chosen", state.outcome === side.dataset.side);
    if (state.battle) {
      const { battle, category, outcome, deadline, revealed: shown } = state;
      sessionStorage.setItem(KEPT, JSON.stringify({ battle, category, outcome, deadline, shown, phase }));
    }
  }

  function show(battle) {
    Object.assign(state, { battle, outcome: null, revealed: null });
    state.reasons.clear();
    resetZoom();
    stage.dataset.kind = battle.kind;
    part("prompt").textContent = battle.prompt;
    part("question").hidden = !battle.question_image;
    if (battle.question_image) part("question").src = battle.question_image.url;
    else part("question").removeAttribute("src");
    for (const side of ["a", "b"]) {
      const view = part(`view-${side}`), shown = battle[side];
      part(`name-${side}`).textContent = "";
      view.className = `view ${shown.url ? "picture" : "answer"}`;
      if (shown.url) view.replaceChildren(picture(shown, side));
      else view.innerHTML = shown.html; // made by the server, tags escaped (apps/arena/web/markdown.py)
    }
    part("reasons").replaceChildren(...battle.reasons.map(({ key, label }, index) => {
      const chip = document.createElement("button");
      chip.type = "button";
      chip.textContent = label;
      chip.dataset.key = key;
      chip.setAttribute("aria-pressed", "false");
      chip.setAttribute("aria-keyshortcuts", String(index + 1));
      chip.addEventListener("click", () => toggle(chip));
      return chip;
    }));
    say("");
    enter("judging");
    part("prompt").focus({ preventScroll: true });
  }

  function picture({ url, width, height }, side) {
    const image = document.createElement("img");
    Object.assign(image, { src: url, width, height, alt: `Result ${side.toUpperCase()}`, draggable: false });
    image.classList.toggle("crisp", width <= 128);
    return image;
  }

  function toggle(chip) {
    const on = !state.reasons.delete(chip.dataset.key);
    if (on) state.reasons.add(chip.dataset.key);
    chip.setAttribute("aria-pressed", String(on));
  }

  // --- battles -------------------------------------------------------------------------------------------------------

  const wanted = () => ({ category: part("category").value || null });

  async function fetchBattle(about) {
    const battle = await call("/api/battle", about);
    const urls = [battle.a.url, battle.b.url, battle.question_image?.url].filter(Boolean);
    await Promise.all(urls.map((url) => {
      const image = new Image();
      image.src = url;
      return image.decode().catch(() => {}); // the page shows the broken picture, and skip is there
    }));
    return battle;
  }

  const waiting = (category) => dealt.get(category) || dealt.set(category, []).get(category);
  const isFresh = (battle) => battle && !(battle instanceof Error) && Date.parse(battle.expires) - Date.now() >= 60_000;

  function prefetch() {
    const about = wanted(), list = waiting(about.category);
    if (!list.length) list.push(fetchBattle(about).catch((error) => error));
  }

  // What is shown and not judged comes back when its category is chosen again.
  function setAside() {
    if (state.phase === "judging") waiting(state.category).unshift(state.battle);
  }

  async function next() {
    if (state.busy) return;
    state.busy = true;
    enter("loading");
    const about = wanted(), list = waiting(about.category);
    try {
      let battle = null;
      while (list.length && !isFresh(battle)) battle = await list.shift();
      if (!isFresh(battle)) {
        say("Fetching a battle …");
        battle = await fetchBattle(about);
      }
      state.category = about.category;
      show(battle);
      prefetch();
    } catch (error) {
      await stop(error);
    } finally {
      state.busy = false;
    }
  }

  async function stop(error) {
    sessionStorage.removeItem(KEPT);
    if (error.error === "consent") return agree();
    state.battle = null;
    say(error.message, true);
    enter("stopped");
  }

  async function agree() {
    const { text, version } = await call("/api/consent");
    if (!text) return;
    const dialog = part("consent");
    part("consent-text").textContent = text;
    dialog.returnValue = "";
    dialog.addEventListener("close", async () => {
      state.battle = null;
      if (dialog.returnValue !== "agree") return stop({ message: "Battles are shown to those who agree to the terms." });
      try {
        await call("/api/consent", { version });
      } catch (error) {
        return stop(error);
      }
      await next();
    }, { once: true });
    dialog.showModal();
  }

  async function live(event) {
    event.preventDefault();
    const form = event.target, prompt = form.prompt.value.trim(), file = form.picture.files[0];
    if (!prompt || state.busy) return;
    setAside();
    await fetchLive(async () => {
      const image = file ? (await call("/api/upload", await file.arrayBuffer(), true)).image : null;
      const answer = await call("/api/battle", image ? { prompt, image } : { prompt });
      form.reset();
      return answer;
    });
  }

  async function fetchLive(ask) {
    state.busy = true;
    enter("loading");
    try {
      let answer = await ask();
      while (answer.ticket) {
        sessionStorage.setItem(TICKET, answer.ticket);
        say(answer.position > 1 ? `${answer.position - 1} before yours in the queue …` : "Yours is being made …");
        await wait(1000);
        answer = await call("/api/battle", { ticket: answer.ticket });
      }
      sessionStorage.removeItem(TICKET);
      show(answer);
    } catch (error) {
      if (error.error !== "offline") sessionStorage.removeItem(TICKET);
      await stop(error);
    } finally {
      state.busy = false;
    }
  }

  // --- judging -------------------------------------------------------------------------------------------------------

  async function act(phase, work) {
    if (state.busy || state.phase !== phase) return;
    state.busy = true;
    try {
      await work(state.battle.token);
    } catch (error) {
      if (["expired", "missing", "forged", "conflict"].includes(error.error)) await stop(error);
      else say(error.message, true);
    } finally {
      state.busy = false;
    }
  }

  const vote = (outcome) => act("judging", async (token) => {
    const answer = await call("/api/vote", { token, outcome, reasons: [...state.reasons] });
    reveal_after = answer.reveal_after;
    Object.assign(state, { outcome: answer.outcome, deadline: Date.now() + 1000 * reveal_after });
    enter("voted");
    say("Your vote is kept. Take it back, or see who made which.");
    tick(token);
  });

  async function tick(token) {
    while (state.phase === "voted" && state.battle.token === token) {
      const left = state.deadline - Date.now();
      part("countdown").value = Math.max(0, left / (1000 * reveal_after));
      if (left <= 0 && !state.busy) return reveal();
      await wait(100);
    }
  }

  const undo = () => act("voted", async (token) => {
    await call("/api/undo", { token });
    state.outcome = null;
    enter("judging");
    say("Taken back. Judge again, or skip.");
  });

  const skip = () => act("judging", async (token) => {
    await call("/api/skip", { token });
    queueMicrotask(() => setTimeout(next));
  });

  const reveal = () => act("voted", async (token) => {
    const answer = await call("/api/reveal", { token });
    reveal_shown(answer);
  });

  function reveal_shown(answer) {
    state.revealed = answer;
    for (const side of ["a", "b"]) part(`name-${side}`).textContent = answer[side].model;
    enter("revealed");
    const kinds = {
      gold: `This one was a check: ${answer.better?.toUpperCase()} was whole, the other a spoilt copy.`,
      repeat: "You had judged this one before; it measures how steady votes are.",
    };
    say(kinds[answer.kind] || `A: ${answer.a.model}. B: ${answer.b.model}.`);
    part("next").focus({ preventScroll: true });
  }

  // --- zoom, pan, blink ----------------------------------------------------------------------------------------------

  const images = () => [...stage.querySelectorAll(".view.picture img")];

  function place() {
    for (const image of images()) image.style.transform = `translate(${zoom.x}%, ${zoom.y}%) scale(${zoom.scale})`;
  }

  function resetZoom() {
    Object.assign(zoom, { scale: 1, x: 0, y: 0 });
    place();
  }

  // Percent of the picture's box, so that two pictures of different size on screen show the same place.
  function zoomBy(factor, at = { x: 50, y: 50 }) {
    const scale = Math.min(12, Math.max(1, zoom.scale * factor));
    const limit = (value) => Math.min(0, Math.max(-100 * (scale - 1), value));
    zoom.x = limit(at.x - (at.x - zoom.x) * (scale / zoom.scale));
    zoom.y = limit(at.y - (at.y - zoom.y) * (scale / zoom.scale));
    zoom.scale = scale;
    place();
  }

  function panBy(x, y) {
    const limit = (value) => Math.min(0, Math.max(-100 * (zoom.scale - 1), value));
    Object.assign(zoom, { x: limit(zoom.x + x), y: limit(zoom.y + y) });
    place();
  }

  function inView(event, view) {
    const box = view.getBoundingClientRect();
    return { x: 100 * (event.clientX - box.left) / box.width, y: 100 * (event.clientY - box.top) / box.height };
  }

  for (const view of [part("view-a"), part("view-b")]) {
    const fingers = new Map();
    const isPicture = () => view.classList.contains("picture");
    view.addEventListener("wheel", (event) => {
      if (!isPicture()) return;
      event.preventDefault();
      zoomBy(Math.exp(-event.deltaY / 300), inView(event, view));
    }, { passive: false });
    view.addEventListener("pointerdown", (event) => {
      if (!isPicture()) return;
      fingers.set(event.pointerId, event);
      view.setPointerCapture(event.pointerId);
    });
    view.addEventListener("pointermove", (event) => {
      const before = fingers.get(event.pointerId);
      if (!before) return;
      const box = view.getBoundingClientRect();
      if (fingers.size === 2) {
        const [other] = [...fingers].filter(([id]) => id !== event.pointerId).map(([, finger]) => finger);
        const apart = (finger) => Math.hypot(finger.clientX - other.clientX, finger.clientY - other.clientY) || 1;
        zoomBy(apart(event) / apart(before), inView(other, view));
      } else {
        panBy(100 * (event.clientX - before.clientX) / box.width, 100 * (event.clientY - before.clientY) / box.height);
      }
      fingers.set(event.pointerId, event);
    });
    for (const end of ["pointerup", "pointercancel"]) view.addEventListener(end, (event) => fingers.delete(event.pointerId));
    view.addEventListener("dblclick", (event) => isPicture() && (zoom.scale > 1 ? resetZoom() : zoomBy(3, inView(event, view))));
  }

  function blink(on) {
    const image = part("view-a").querySelector("img"), other = part("view-b").querySelector("img");
    if (!image || !other) return;
    image.src = on ? state.battle.b.url : state.battle.a.url;
    stage.querySelector('[data-side="a"] .letter').textContent = on ? "B" : "A";
    part("blink").setAttribute("aria-pressed", String(on));
  }

  part("blink").addEventListener("pointerdown", () => blink(true));
  for (const end of ["pointerup", "pointerleave", "blur"]) part("blink").addEventListener(end, () => blink(false));

  // --- buttons and keys ----------------------------------------------------------------------------------------------

  for (const button of part("choices").children) button.addEventListener("click", () => vote(button.dataset.outcome));
  part("skip").addEventListener("click", skip);
  part("undo").addEventListener("click", undo);
  part("reveal").addEventListener("click", reveal);
  part("next").addEventListener("click", next);
  part("live").addEventListener("submit", live);
  part("category").addEventListener("change", () => {
    if (state.busy || state.phase === "voted") return;
    setAside();
    next();
  });

  const keys = {
    a: () => vote("a"), arrowleft: () => vote("a"), b: () => vote("b"), arrowright: () => vote("b"),
    t: () => vote("tie"), arrowdown: () => vote("tie"), x: () => vote("both_bad"), s: skip, u: undo,
    "+": () => zoomBy(1.5), "-": () => zoomBy(1 / 1.5), 0: resetZoom,
    enter: () => (state.phase === "voted" ? reveal() : ["revealed", "stopped"].includes(state.phase) && next()),
  };

  const isVisible = () => stage.offsetParent !== null;
  const isTyping = (target) => target.closest?.("input, textarea, select, [contenteditable], dialog[open]");

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !isVisible() || isTyping(event.target)) return;
    const key = event.key.toLowerCase(), onButton = event.target.closest?.("button, summary, a");
    if (key === " ") {
      if (onButton && onButton !== part("blink")) return;
      event.preventDefault();
      if (!event.repeat) blink(true);
    } else if (/^[1-9]$/.test(key) && state.phase === "judging") {
      const chip = part("reasons").children[Number(key) - 1];
      if (chip && !event.repeat) toggle(chip);
    } else if (keys[key] && !(key === "enter" && onButton) && !(key.startsWith("arrow") && event.target.closest?.("[role=tab]"))) {
      event.preventDefault();
      if (!event.repeat || key === "+" || key === "-") keys[key]();
    }
  });
  document.addEventListener("keyup", (event) => event.key === " " && blink(false));

  // --- start: a reload finds its battle again, or its place in the queue ---------------------------------------------

  async function restore() {
    const ticket = sessionStorage.getItem(TICKET);
    if (ticket) return fetchLive(() => call("/api/battle", { ticket }));
    const kept = JSON.parse(sessionStorage.getItem(KEPT) || "null");
    if (!kept?.battle || Date.parse(kept.battle.expires) < Date.now() || kept.phase === "loading") return next();
    part("category").value = kept.category || "";
    state.category = kept.category;
    show(kept.battle);
    prefetch();
    if (kept.phase === "voted") {
      Object.assign(state, { outcome: kept.outcome, deadline: kept.deadline });
      enter("voted");
      tick(kept.battle.token);
    } else if (kept.phase === "revealed") {
      state.outcome = kept.outcome;
      reveal_shown(kept.shown);
    }
  }

  async function begin() {
    const about = await call("/api/arena");
    reveal_after = about.reveal_after;
    for (const name of about.categories) part("category").add(new Option(name, name));
    part("category").closest("label").hidden = about.categories.length < 2;
    part("live").hidden = !about.live;
    if (about.live) {
      part("live").prompt.maxLength = about.live.prompt_characters;
      part("live").querySelector(".file").hidden = !about.live.kinds.includes("text");
    }
    await restore();
  }

  enter("loading");
  begin().catch((error) => stop(error));
}

async function forget(button) {
  if (!confirm("Delete all of your votes and prompts? This cannot be undone.")) return;
  const { votes } = await call("/api/me/delete", {});
  sessionStorage.removeItem(KEPT);
  sessionStorage.removeItem(TICKET);
  button.replaceWith(`Deleted: ${votes} votes, and whatever else was known of you.`);
}

// --- places on Gradio's page: it draws them after this script has loaded, and may draw them anew -----------------------

async function ask(path) {
  const response = await fetch(path, { credentials: "same-origin" });
  const said = await response.text();
  if (response.ok) return { said, ready: response.status !== 202 };
  let message = "The server did not answer as expected.";
  try {
    message = JSON.parse(said).message || message;
  } catch { /* not the arena's own answer */ }
  throw new Error(message);
}

const template = ask("/page/stage.html");

async function fillVote(place) {
  place.innerHTML = (await template).said;
  start(place.querySelector('[data-arena="stage"]'));
}

// Keeps a box as the server says it is, while it is on screen, and what a reader has opened in it open.
async function keepFilled(place, box, path, seconds) {
  const open = new Set();
  let drawn = null, next = 0, last = null;
  for (; place.isConnected; await wait(250)) {
    const wanted = path();
    if (place.offsetParent === null) next = 0;
    else if (Date.now() >= next || wanted !== last) {
      const { said, ready } = await ask(wanted).catch(({ message }) => {
        const line = document.createElement("p");
        line.textContent = message;
        return { said: line.outerHTML, ready: false };
      });
      if (said !== drawn) {
        for (const each of box.querySelectorAll("details")) open[each.open ? "add" : "delete"](each.dataset.name);
        box.innerHTML = drawn = said;
        for (const each of box.querySelectorAll("details")) each.open = open.has(each.dataset.name);
      }
      last = wanted;
      next = Date.now() + 1000 * (ready ? seconds : 1);
    }
  }
}

function boxIn(place) {
  const box = document.createElement("div");
  box.className = "arena-shown";
  place.append(box);
  return box;
}

function choice(label, options) {
  const line = document.createElement("label"), select = document.createElement("select");
  for (const [value, text] of options) select.add(new Option(text, value));
  line.append(`${label} `, select);
  return { line, select };
}

async function fillBoard(place) {
  const bar = document.createElement("div");
  bar.className = "arena-choices";
  place.replaceChildren(bar);
  const { boards } = await call("/api/arena");
  const category = choice("Category", [["", "all"], ...boards.categories.map((name) => [name, name])]);
  const control = choice("Hold equal", [["", "nothing"], ...boards.controls.map((name) => [name, `the ${name}`])]);
  bar.append(category.line, control.line);
  category.line.hidden = boards.categories.length < 2;
  const asked = () => new URLSearchParams({ category: category.select.value, control: control.select.value });
  await keepFilled(place, boxIn(place), () => `/page/board?${asked()}`, 10);
}

async function fillMine(place) {
  place.replaceChildren();
  const box = boxIn(place);
  place.append(forgetting());
  await keepFilled(place, box, () => "/page/mine", 5);
}

function forgetting() {
  const line = document.createElement("p"), button = document.createElement("button");
  line.className = "arena-forget";
  Object.assign(button, { type: "button", textContent: "Delete all my data" });
  button.addEventListener("click", () => forget(button).catch((error) => alert(error.message)));
  line.append(button);
  return line;
}

const PLACES = { "arena-vote": fillVote, "arena-board": fillBoard, "arena-your-votes": fillMine };

function look() {
  for (const [id, fill] of Object.entries(PLACES)) {
    const place = document.getElementById(id);
    if (place && !place.dataset.filled) {
      place.dataset.filled = "yes";
      fill(place).catch((error) => place.replaceChildren(error.message));
    }
  }
}

new MutationObserver(look).observe(document.documentElement, { childList: true, subtree: true });
look();
