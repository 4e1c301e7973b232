"""How pictures look. Colours are Okabe and Ito's: told apart by everybody, and never alone."""

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
DASHES = ("-", "--", "-.", ":")
MARKERS = "osD^vP"
HATCHES = ("", "///", "|||", "\\\\\\", "xxx", "---", "+++", "//")  # of lines: dots make large files
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "isthmus", "font.size": 10,
         "font.family": "sans-serif", "axes.spines.top": False, "axes.spines.right": False,
         "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left"}
