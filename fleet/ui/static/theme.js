// Dark or light: the reader's choice, else the system's.
const KEY = "fleet-theme";
const system = window.matchMedia("(prefers-color-scheme: dark)");

export function choice() {
  try {
    return localStorage.getItem(KEY) ?? "system";
  } catch {
    return "system";
  }
}

export function isDark() {
  const chosen = choice();
  return chosen === "dark" || (chosen === "system" && system.matches);
}

export function applyTheme() {
  document.body.classList.toggle("dark", isDark());
  document.documentElement.classList.toggle("dark", isDark());
  document.documentElement.style.colorScheme = isDark() ? "dark" : "light";
}

export function toggleTheme() {
  try {
    localStorage.setItem(KEY, isDark() ? "light" : "dark");
  } catch {
    // Without storage the choice lasts until the reload.
  }
  applyTheme();
}

system.addEventListener("change", applyTheme);
