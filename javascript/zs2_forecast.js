// The forecast of the panel, asked for when something in its tab changes; a preflight; the lists of presets.

const zs2ForecastTabs = {};

function zs2IsRunning(tab) {
    const stop = gradioApp().getElementById(`${tab}_interrupt`);
    return !!stop && getComputedStyle(stop).display !== 'none';
}

// Asks soon, and once for all that changes until then; never a second time before the answer.
function zs2ForecastSoon(tab, milliseconds = 400) {
    const now = zs2ForecastTabs[tab] ??= {timer: 0, asked: 0};
    clearTimeout(now.timer);
    now.timer = setTimeout(() => zs2AskForecast(tab), milliseconds);
}

function zs2AskForecast(tab) {
    const now = zs2ForecastTabs[tab], shown = zs2Part(tab, 'forecast'), button = zs2Part(tab, 'forecast_now');
    if (!shown || !button || !zs2IsOn(tab)) return;
    if (now.asked && Date.now() - now.asked < 30000) {
        now.again = true;
        return;
    }
    if (!now.observer) {
        now.observer = new MutationObserver(() => {
            now.asked = 0;
            if (now.again) zs2ForecastSoon(tab);
            now.again = false;
        });
        now.observer.observe(shown, {childList: true, subtree: true, characterData: true});
    }
    now.asked = Date.now();
    button.click();
}

function zs2Changed(event) {
    const target = event.composedPath()[0];
    const tab = target.closest?.('#tab_txt2img, #tab_img2img')?.id.replace('tab_', '');
    if (!tab || target.closest(`#${tab}_results, #script_${tab}_zs2_forecast_now`)) return;
    zs2ForecastSoon(tab);
}

for (const type of ['input', 'change', 'click']) document.addEventListener(type, zs2Changed, true);

// --- a preflight -----------------------------------------------------------------------------------------------------

// The box is ticked until the host has taken the inputs of its Generate, which it shows by its button Interrupt.
async function zs2Preflight(tab) {
    const box = zs2Part(tab, 'preflight')?.querySelector('input[type="checkbox"]');
    if (!box || !zs2IsOn(tab) || zs2IsRunning(tab)) return;
    if (!box.checked) box.click();
    try {
        await zs2Pause(150);
        gradioApp().getElementById(`${tab}_generate`).click();
        for (let waited = 0; waited < 5000 && !zs2IsRunning(tab); waited += 50) await zs2Pause(50);
    } finally {
        if (box.checked) box.click();
    }
}

// --- presets ---------------------------------------------------------------------------------------------------------

// One was saved, renamed or deleted: the lists of both tabs are read anew.
function zs2PresetsChanged() {
    for (const tab of ['txt2img', 'img2img']) zs2Part(tab, 'preset_refresh')?.click();
}

onUiLoaded(() => {
    zs2PresetsChanged();
    for (const tab of ['txt2img', 'img2img']) {
        zs2ForecastSoon(tab);
        const info = gradioApp().getElementById(`html_info_${tab}`);  // a job has ended: more is known
        if (info) new MutationObserver(() => zs2ForecastSoon(tab)).observe(info, {childList: true, subtree: true});
    }
});
