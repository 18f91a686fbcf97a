"use strict";
// Moves the progress, previews the picture, takes words out of the prompt, and lists earlier answers. Without it the page
// asks and answers all the same, and has a link to look again.
const by = (id) => document.getElementById(id);

async function wait(section) {
  const words = section.dataset.words.split("|");
  const status = section.querySelector("[role=status]");
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, 400));
    let question;
    try {
      const response = await fetch(`/questions/${section.dataset.question}`, { cache: "no-store" });
      question = await response.json();
      if (!response.ok) throw new Error(question.error);
    } catch (error) {
      status.textContent = `The server does not answer (${error.message}); trying again`;
      continue;
    }
    if (question.state === "done" || question.state === "failed") {
      history.replaceState("waited", "");
      return location.reload();
    }
    const text =
      question.state === "queued"
        ? `${question.ahead} question${question.ahead === 1 ? "" : "s"} before it`
        : `Step ${question.step || 1} of ${words.length}: ${words[(question.step || 1) - 1]}`;
    if (status.textContent !== text) status.textContent = text;
    section.querySelector("progress").value = question.step;
  }
}

function preview() {
  const [file] = by("picture").files;
  by("preview").hidden = !file;
  if (file) by("preview").src = URL.createObjectURL(file);
}

// The words of the prompt as buttons. `minus` is one phrase, so a word beside it extends it and any other replaces it.
function listWords() {
  const [prompt, minus] = [by("prompt").value, by("minus").value];
  const words = [...prompt.matchAll(/\S+/g)];
  const from = minus ? prompt.indexOf(minus) : -1;
  const left = words.map((word) => from >= 0 && word.index >= from && word.index < from + minus.length);
  const [first, last] = [left.indexOf(true), left.lastIndexOf(true)];
  const buttons = words.map((word, i) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = word[0];
    button.ariaPressed = String(left[i]);
    button.addEventListener("click", () => {
      let [a, b] = [i, i];
      if (first >= 0 && i >= first - 1 && i <= last + 1) [a, b] = [Math.min(first, i), Math.max(last, i)];
      if (left[i]) [a, b] = i === first ? [first + 1, last] : [first, i - 1];
      by("minus").value = a > b ? "" : prompt.slice(words[a].index, words[b].index + words[b][0].length);
      listWords();
      by("words").children[i].focus();
    });
    return button;
  });
  by("words").replaceChildren(...buttons);
  by("words").hidden = !buttons.length;
}

// This browser remembers the answers that it has shown, so that one can be put beside another.
function rememberAnswer({ question, audit, words }) {
  const place = `answers of ${audit}`;
  let earlier = [];
  try {
    earlier = (JSON.parse(localStorage.getItem(place)) ?? []).filter(([id]) => id !== question);
    localStorage.setItem(place, JSON.stringify([[question, words], ...earlier].slice(0, 50)));
  } catch {} // a browser that keeps nothing
  by("earlier").replaceChildren(...earlier.map(([id, text]) => new Option("", `${text} · ${id}`)));
}

if (by("earlier")) {
  const { dataset } = by("earlier").closest("form");
  addEventListener("pageshow", () => rememberAnswer(dataset)); // also after a way back, which runs no script again
}

if (by("waiting")) wait(by("waiting"));

// Whoever has waited goes on at the answer; a browser would go on where the page was before it was loaded again.
if (history.state === "waited") {
  history.replaceState(null, "");
  const title = by("answer-1");
  if (title) title.focus();
  if (title) addEventListener("load", () => setTimeout(() => title.scrollIntoView()));
}

if (by("prompt")) {
  for (const name of ["prompt", "minus"]) by(name).addEventListener("input", listWords);
  listWords();
}

const drop = document.querySelector(".drop");
by("picture").addEventListener("change", preview);
for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault(); // a picture that misses the field must not replace the page
    drop.classList.toggle("over-it", kind === "dragenter" || kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files.length) {
      by("picture").files = event.dataTransfer.files;
      preview();
    }
  });
}
