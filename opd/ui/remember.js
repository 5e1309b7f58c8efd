(...values) => {
  try {
    localStorage.setItem("FORM", JSON.stringify(values));
  } catch {
    // a browser that keeps nothing, or has no room: the form is as good without
  }
  return [];
}
