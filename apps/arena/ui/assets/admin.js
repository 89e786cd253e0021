// The owner's page: everything is asked of /admin/api, which knows who has logged in by a cookie that scripts cannot read.
const at = (id) => document.getElementById(id);

async function call(path, body) {
  const request = body === undefined ? {} : { method: "POST", body: JSON.stringify(body), headers: { "content-type": "application/json" } };
  const response = await fetch(`/admin/api/${path}`, { credentials: "same-origin", ...request });
  const answer = await response.json().catch(() => ({ message: "The server did not answer as expected." }));
  if (response.status === 401 && path !== "login") open(false);
  if (!response.ok) throw new Error(answer.message);
  return answer;
}

function open(inside) {
  at("login").hidden = inside;
  at("inside").hidden = !inside;
  if (!inside) at("login").password.focus();
}

function button(text, act) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  made.addEventListener("click", () => attempt(act));
  return made;
}

function table(place, columns, rows, empty) {
  if (!rows.length) return at(place).replaceChildren(Object.assign(document.createElement("table"), { innerHTML: "<tr><td></td></tr>" })), void (at(place).querySelector("td").textContent = empty);
  const made = document.createElement("table");
  const head = made.createTHead().insertRow();
  for (const [name] of columns) head.append(Object.assign(document.createElement("th"), { scope: "col", textContent: name }));
  const body = made.createTBody();
  for (const row of rows) {
    const line = body.insertRow();
    for (const [, cell, kind] of columns) {
      const value = cell(row), place = line.insertCell();
      place.append(value instanceof Node ? value : String(value ?? ""));
      if (kind) Object.assign(place, { className: kind, title: String(value) });
    }
  }
  at(place).replaceChildren(made);
}

async function attempt(act) {
  try {
    at("status").textContent = "";
    await act();
  } catch (error) {
    at("status").textContent = error.message;
  }
}

const day = (text) => (text ? text.slice(0, 16).replace("T", " ") : "");
const exclude = (what, target) => async () => {
  const reason = prompt(`Leave this ${what} out of ratings and exports. Why?`);
  if (reason === null) return;
  await call("exclude", { what, target, reason });
  await refresh();
};
const include = (id) => async () => {
  await call("include", { id });
  await refresh();
};

let shown = [];

async function votes(before) {
  const page = await call(before ? `votes?before=${before}` : "votes");
  shown = before ? [...shown, ...page] : page;
  table("votes", [
    ["when", (v) => day(v.created)], ["prompt", (v) => v.prompt], ["A", (v) => v.model_a], ["B", (v) => v.model_b],
    ["outcome", (v) => v.outcome.replace("_", " ")], ["kind", (v) => v.kind], ["voter", (v) => v.voter, "id"],
    ["", (v) => button("Exclude", exclude("battle", v.battle))],
  ], shown, "No votes yet.");
  at("older").hidden = page.length < 200;
}

async function refresh() {
  const [overview, voters, exclusions, consent] = await Promise.all([call("overview"), call("voters"), call("exclusions"), call("consent")]);
  at("overview").replaceChildren(...["votes", "battles", "skipped", "voters", "prompts", "exclusions"].map((name) => {
    const box = document.createElement("div");
    box.append(Object.assign(document.createElement("dt"), { textContent: name }), Object.assign(document.createElement("dd"), { textContent: overview[name] }));
    return box;
  }));
  table("models", [
    ["model", (m) => m.name], ["kind", (m) => m.kind], ["outputs", (m) => m.outputs], ["since", (m) => day(m.added)],
    ["", (m) => button(m.retired ? "Show again" : "Retire", async () => (await call("retire", { model: m.name, retired: !m.retired }), refresh()))],
  ], overview.models, "No models yet.");
  table("voters", [
    ["voter", (v) => v.voter, "id"], ["votes", (v) => v.votes], ["checks right", (v) => `${v.golds_right ?? 0} of ${v.golds ?? 0}`],
    ["last vote", (v) => day(v.last)], ["set apart for", (v) => [...v.flags, v.owner ? "owner" : ""].filter(Boolean).join(", ")],
    ["network", (v) => v.network, "id"],
    ["", (v) => (v.exclusion ? button("Include", include(v.exclusion)) : button("Exclude", exclude("voter", v.voter)))],
  ], voters, "Nobody has come yet.");
  table("exclusions", [
    ["when", (e) => day(e.created)], ["what", (e) => e.what], ["which", (e) => e.target, "id"], ["why", (e) => e.reason],
    ["", (e) => (e.lifted ? `lifted ${day(e.lifted)}` : button("Lift", include(e.id)))],
  ], exclusions, "Nothing is excluded.");
  at("consent").text.value = consent.text ?? "";
  await votes();
  open(true);
}

at("login").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(async () => {
    await call("login", { password: event.target.password.value });
    event.target.reset();
    await refresh();
  });
});
at("logout").addEventListener("click", () => attempt(async () => (await call("logout", {}), open(false))));
at("older").addEventListener("click", () => attempt(() => votes(shown.at(-1).at)));
at("consent").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(async () => {
    await call("consent", { text: event.target.text.value });
    at("status").textContent = "Saved. Voters are asked to agree to it.";
  });
});
refresh().catch(() => open(false));
