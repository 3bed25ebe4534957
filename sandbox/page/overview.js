// Shows what the sandbox holds, and runs its commands. All texts enter the page as text, never as HTML.
"use strict";

const PAUSE_MS = 2000;
const objects = document.getElementById("objects");
const totals = document.getElementById("totals");
const problem = document.getElementById("problem");
let shown = "";

function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  Object.assign(made, properties);
  made.append(...children);
  return made;
}

function complain(text) {
  problem.textContent = text;
  problem.hidden = text === "";
}

async function act(action, button) {
  button.disabled = true;
  const answer = await fetch(`/_sandbox/${action.path}`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(action.body),
  });
  const body = await answer.json();
  complain(answer.ok ? "" : body.error.message);
  button.disabled = false;
  await refresh();
}

function button(action) {
  const made = element("button", { type: "button", textContent: action.label });
  made.addEventListener("click", () => act(action, made));
  return made;
}

function row(object) {
  const name = object.url
    ? element("a", { href: object.url, textContent: object.id })
    : element("code", { textContent: object.id });
  const line = element(
    "tr",
    { id: object.id },
    element("td", {}, name),
    element("td", { textContent: object.amount, className: "amount" }),
    element("td", { textContent: object.status, className: `status ${object.status}` }),
    element("td", { textContent: new Date(object.created * 1000).toLocaleTimeString() }),
    element("td", { className: "actions" }, ...object.actions.map(button)),
  );
  return line;
}

function table(group) {
  const head = ["id", "amount", "status", "created", ""].map((text) => element("th", { textContent: text }));
  return element(
    "div",
    {},
    element("h2", { textContent: group.title }),
    element("table", {}, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...group.objects.map(row))),
  );
}

function show(overview) {
  totals.replaceChildren(
    ...overview.totals.map((total) => element("p", {}, element("b", { textContent: total.name }), ` ${total.value}`)),
  );
  const groups = overview.groups.filter((group) => group.objects.length);
  objects.replaceChildren(
    ...(groups.length ? groups.map(table) : [element("p", { textContent: "Nothing yet." })]),
  );
}

async function refresh() {
  try {
    const answer = await fetch("/_sandbox/overview");
    const text = await answer.text();
    // An unchanged page keeps its focus and its selection.
    if (text !== shown) {
      shown = text;
      show(JSON.parse(text));
    }
  } catch (error) {
    complain(`The sandbox does not answer: ${error.message}`);
  }
}

refresh();
setInterval(() => document.hidden || refresh(), PAUSE_MS);
